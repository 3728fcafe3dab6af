//! A little program that acknowledges lines, once rightly and once wrongly, to prove that the file system and the
//! oracle catch a program that answers before its data is durable.
//!
//! It runs as a process of its own: the test's executable started again with a variable set.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Set for the program: the file it keeps its lines in.
const FILE_VARIABLE: &str = "RINGPOST_TEST_JOURNAL";
/// Set for the program: what it does wrong.
const FAULT_VARIABLE: &str = "RINGPOST_TEST_JOURNAL_FAULT";
/// Octets of one record, several sectors.
const RECORD: usize = 1500;

/// What the program does wrong.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It answers, then syncs.
    AnswersFirst,
    /// It never syncs the directory that has its file's name.
    ForgetsName,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::AnswersFirst => "answers first",
            Fault::ForgetsName => "forgets name",
        }
    }
}

/// Is this process the program? Then it runs it, until its input ends.
pub fn run_if_asked() -> bool {
    let Some(path) = std::env::var_os(FILE_VARIABLE) else { return false };
    let fault = std::env::var(FAULT_VARIABLE).unwrap_or_default();
    if let Err(error) = run(Path::new(&path), &fault) {
        eprintln!("journal: {error}");
    }
    true
}

fn run(path: &Path, fault: &str) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    if fault != Fault::ForgetsName.name() {
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    }
    for line in io::stdin().lock().lines() {
        let record = record(&line?);
        file.write_all(&record)?;
        if fault != Fault::AnswersFirst.name() {
            file.sync_data()?;
        }
        io::stderr().write_all(b"kept\n")?;
        if fault == Fault::AnswersFirst.name() {
            file.sync_data()?;
        }
    }
    Ok(())
}

fn record(line: &str) -> Vec<u8> {
    let mut record = line.as_bytes().to_vec();
    record.resize(RECORD - 1, b'.');
    record.push(b'\n');
    record
}

/// The running program.
pub struct Journal {
    child: Child,
    answers: BufReader<std::process::ChildStderr>,
}

impl Journal {
    pub fn start(path: &Path, fault: Fault) -> io::Result<Journal> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "journal_program", "--nocapture"])
            .env(FILE_VARIABLE, path)
            .env(FAULT_VARIABLE, fault.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stderr.take().ok_or_else(|| io::Error::other("no standard error"))?);
        Ok(Journal { child, answers })
    }

    /// Hands over a line and waits for the answer.
    pub fn keep(&mut self, line: &str) -> io::Result<()> {
        let input = self.child.stdin.as_mut().ok_or_else(|| io::Error::other("no standard input"))?;
        input.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        if answer == "kept\n" { Ok(()) } else { Err(io::Error::other(format!("it said {answer:?}"))) }
    }

    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }
}

/// Which of the lines are in the file, each whole.
pub fn kept_lines(path: &Path, lines: usize) -> Vec<bool> {
    let bytes = std::fs::read(path).unwrap_or_default();
    (0..lines).map(|number| bytes.get(number * RECORD..(number + 1) * RECORD) == Some(&record(&line(number)))).collect()
}

/// The text of a line.
pub fn line(number: usize) -> String {
    format!("line {number}")
}
