//! `ringpost-load compare`.

use clap::Args;
use ringpost_load::compare;
use ringpost_load::results::Results;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Compares two runs by their JSON files: medians, the difference, and the range that holds it in 95 of 100 cases.
///
/// With three files or more on each side (with commas between them) whole runs are compared, which is what decides;
/// with fewer, the intervals within the runs.
#[derive(Args)]
pub struct Arguments {
    /// One run or several, as in a1.json,a2.json,a3.json.
    #[arg(value_name = "BEFORE.json[,..]")]
    before: String,
    /// The other, as many or not.
    #[arg(value_name = "AFTER.json[,..]")]
    after: String,
    /// Also write a page with the curves of all of them.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Compares.
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    let read =
        |files: &str| files.split(',').map(|file| Results::read(Path::new(file))).collect::<io::Result<Vec<Results>>>();
    let (mut before, mut after) = (read(&arguments.before)?, read(&arguments.after)?);
    let comparison = compare::compare(&before, &after);
    if let Some(path) = &arguments.html {
        before.iter_mut().for_each(|run| run.label = format!("before: {}", run.label));
        after.iter_mut().for_each(|run| run.label = format!("after: {}", run.label));
        before.append(&mut after);
        let page = ringpost_load::html::page_with_text("comparison", &before, &comparison.to_string())?;
        std::fs::write(path, page)?;
    }
    io::stdout().write_all(comparison.to_string().as_bytes())?;
    Ok(true)
}
