//! The program as a user runs it: a destination, a source, the ledger between them, a comparison, and what is refused.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringpost-load"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A directory that is gone when the test has succeeded.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Directory(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).expect("the directory");
        }
    }
}

/// A running command and the address that it says it listens on.
struct Running(Child, String);

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child =
            program().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.split([' ', ',', '\n']).find(|word| word.starts_with("127.0.0.1:"));
        let address = address.unwrap_or_else(|| panic!("it says {line:?}")).to_owned();
        Running(child, address)
    }

    /// Interrupts it; what it printed.
    fn interrupt(mut self) -> String {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGINT) };
        let mut printed = String::new();
        let mut output = self.0.stdout.take().expect("a pipe");
        std::io::Read::read_to_string(&mut output, &mut printed).expect("text");
        assert!(self.0.wait().expect("an end").success());
        printed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that was waited for cannot be killed, and needs no killing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_run_its_ledger_and_a_comparison() {
    let directory = Directory::new("cli");
    let (sent, came, out) = (directory.file("sent"), directory.file("came"), directory.file("out"));
    let sink = Running::start(&["sink", "--listen", "127.0.0.1:0", "--ledger", &came]);
    let send = ["send", "--to", &sink.1, "-m", "300", "-s", "3", "--out", &out];
    let first = run(&[&send[..], &["--label", "first", "--ledger", &sent, "--size", "mixed"]].concat());
    assert!(first.status.success() && text(&first).contains("300 of 300 messages"), "{}", text(&first));
    let again = directory.file("again");
    let second = run(&[&send[..], &["--label", "second", "--ledger", &again, "--rate", "3000", "--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&second.stdout).expect("JSON");
    assert_eq!(json["sent"]["acknowledged"], 300);
    assert!(sink.interrupt().contains("messages             600"));

    let ledger = run(&["ledger", &sent, &again, &came]);
    assert!(ledger.status.success() && text(&ledger).contains("lost 0, repeated 0, damaged 0"), "{}", text(&ledger));
    let half = run(&["ledger", &sent, "--json", "--", &again]);
    assert_eq!(half.status.code(), Some(1), "nothing has arrived: {}", text(&half));

    for end in ["first.json", "first.html", "first.latency.hgrm", "second.transaction.hgrm"] {
        assert!(directory.0.join("out").join(end).exists(), "{end}");
    }
    let (first, second) = (directory.file("out/first.json"), directory.file("out/second.json"));
    let page = directory.file("page.html");
    let compared = run(&["compare", &first, &second, "--html", &page]);
    assert!(compared.status.success() && text(&compared).contains("messages per second"), "{}", text(&compared));
    assert!(std::fs::read_to_string(page).expect("a page").contains("<svg"));
    let wrong = run(&["compare", &first, &sent]);
    assert!(wrong.status.code() == Some(1) && text(&wrong).contains("sent"), "{}", text(&wrong));
}

#[test]
fn source_and_destination_in_one_process() {
    let relay = Running::start(&["sink", "--listen", "127.0.0.1:0"]);
    // What the far end takes does not come back to our sink: all of it is lost, and that is said.
    let output = run(&["send", "--to", &relay.1, "-m", "20", "--sink", "127.0.0.1:0", "--arrival-patience", "50ms"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("lost 20"), "{}", text(&output));
}

#[test]
fn distance_as_a_command() {
    let sink = Running::start(&["sink", "--listen", "127.0.0.1:0"]);
    let delay = Running::start(&["delay", "--listen", "127.0.0.1:0", "--to", &sink.1, "--rtt", "5ms", "--json"]);
    let output = run(&["send", "--to", &delay.1, "-m", "20", "-s", "2"]);
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_str(&delay.interrupt()).expect("JSON");
    assert_eq!((&report["connections"], &report["refused"]), (&2.into(), &0.into()), "{report}");
    assert!(report["error"]["count"].as_u64() > Some(20), "{report}");
}

#[test]
fn what_makes_no_sense_is_refused_in_words() {
    for (arguments, expected) in [
        (&["send"][..], "--to"),
        (&["send", "--to", "127.0.0.1:1", "--profile", "dance:1"], "constant:RATE"),
        (&["send", "--to", "127.0.0.1:1", "--size", "big"], "mixed"),
        (&["send", "--to", "127.0.0.1:1", "--recipients", "0"], "from 1 to 1000"),
        (&["send", "--to", "127.0.0.1:1", "--cpu", "0,1024"], "below 1024"),
        (&["sink", "--rule", "* dance"], "not an action"),
        (&["profile", "dance"], "accept, deliver"),
        (&["delay", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:1", "--rtt", "2m"], "at most a minute"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    }
}
