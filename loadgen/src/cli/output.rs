//! Where results go: the table or JSON on standard output, and files of all forms.

use clap::Args;
use ringpost_load::report::Latency;
use ringpost_load::results::Results;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Options about results.
#[derive(Args)]
pub struct OutputArguments {
    /// Print the results as JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Write everything into this directory: LABEL.json, LABEL.html, LABEL.latency.hgrm, LABEL.transaction.hgrm.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What the run is called.
    #[arg(long, default_value = "run", value_name = "NAME", value_parser = parse_label)]
    pub label: String,
}

fn parse_label(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.len() <= 100 && !text.starts_with('.') && !text.contains(['/', '\0']);
    if good { Ok(text.to_owned()) } else { Err("a label is a part of file names".to_owned()) }
}

/// The command line, as it can be given again.
pub fn command() -> String {
    let words = std::env::args().map(|word| match word.contains([' ', '*', '\'']) {
        true => format!("'{}'", word.replace('\'', "'\\''")),
        false => word,
    });
    words.collect::<Vec<String>>().join(" ")
}

/// Prints results, and writes the files if a directory is given.
pub fn give(results: &Results, histograms: &[(&str, &Latency)], arguments: &OutputArguments) -> io::Result<()> {
    if let Some(directory) = &arguments.out {
        write_files(results, histograms, directory)?;
    }
    let text = if arguments.json { results.to_json()? + "\n" } else { results.to_string() };
    io::stdout().write_all(text.as_bytes())
}

/// Writes all files of a run into a directory, which is made if it is not there.
pub fn write_files(results: &Results, histograms: &[(&str, &Latency)], directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let label = &results.label;
    std::fs::write(directory.join(format!("{label}.json")), results.to_json()?)?;
    let page = ringpost_load::html::page(label, std::slice::from_ref(results))?;
    std::fs::write(directory.join(format!("{label}.html")), page)?;
    for (name, latency) in histograms.iter().filter(|(_, latency)| latency.count() > 0) {
        let mut file = BufWriter::new(File::create(directory.join(format!("{label}.{name}.hgrm")))?);
        latency.write_hgrm(&mut file)?;
        file.flush()?;
    }
    Ok(())
}
