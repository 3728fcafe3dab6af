//! Tables for people: columns as wide as their widest cell, the last one as it is. What comes from peers is made safe.

use crate::control::log::sanitised;
use std::io::{self, Write};

/// Rows of cells under a heading.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With this heading.
    pub fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&str]) {
        self.rows.push(cells.iter().map(|cell| sanitised(cell)).collect());
    }

    /// Writes it.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(cell);
                let padding = widths[column] - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', padding + 2));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// "1 message", "2 messages".
pub fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_are_safe() {
        let mut table = Table::new(&["ID", "FROM"]);
        table.row(&["1", "a@b\u{1b}[2J"]);
        table.row(&["1000", ""]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "ID    FROM\n1     a@b\\u{1b}[2J\n1000\n");
        assert_eq!((counted(1, "message"), counted(0, "message")), ("1 message".into(), "0 messages".into()));
    }
}
