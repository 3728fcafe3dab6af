//! The program as people call it: help, exit codes, errors, and a first run from the recipe's first line to the stop.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn ringpost(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .args(arguments)
        .env_remove("RINGPOST_CONFIG")
        .env_remove("RINGPOST_ADMIN_SOCKET")
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("ringpost-cli-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_is_given_for_every_command_and_is_no_error() {
    for command in [
        vec!["--help"],
        vec!["serve", "--help"],
        vec!["check-config", "--help"],
        vec!["queue", "--help"],
        vec!["queue", "list", "--help"],
        vec!["queue", "delete", "--help"],
        vec!["status", "--help"],
        vec!["sandbox", "list", "--help"],
        vec!["certificate", "list", "--help"],
        vec!["spool", "verify", "--help"],
        vec!["classify", "--help"],
        vec!["send", "--help"],
        vec!["completions", "--help"],
        vec!["man", "--help"],
    ] {
        let output = ringpost(&command);
        assert_eq!(code(&output), 0, "{command:?}: {}", err(&output));
        assert!(out(&output).contains("Usage: ringpost"), "{command:?}");
    }
    assert!(out(&ringpost(&["--help"])).contains("Exit codes"));
    assert_eq!(out(&ringpost(&["--version"])), format!("ringpost {}\n", env!("CARGO_PKG_VERSION")));
    let serve = out(&ringpost(&["serve", "--help"]));
    for flag in [
        "--config",
        "--spool",
        "--listen",
        "--submission",
        "--submissions",
        "--credential-file",
        "--next-hop",
        "--retry",
        "--hold",
        "--shards",
        "--resolver",
        "--delivery-port",
        "--connections",
        "--hostname",
        "--log-format",
        "--metrics",
        "--admin-socket",
    ] {
        assert!(serve.contains(flag), "{flag}");
    }
}

#[test]
fn shaping_shows_what_holds_and_says_what_is_wrong() {
    let all = ringpost(&["shaping"]);
    assert_eq!(code(&all), 0, "{}", err(&all));
    let text = out(&all);
    let gmail = text.lines().find(|line| line.starts_with("gmail ")).unwrap_or_else(|| panic!("{text}"));
    assert!(gmail.contains("5 connections, 50 messages each, TLS required"), "{gmail}");
    let scratch = Scratch::new("shaping");
    let (config, file) = (scratch.0.join("relay.toml"), scratch.0.join("shaping.toml"));
    let sections =
        format!("[[listener]]\naddress = \"127.0.0.1:25\"\n[shaping]\nfiles = {:?}\n", file.display().to_string());
    std::fs::write(&config, sections).unwrap();
    std::fs::write(&file, "[provider.gmail]\nconnections = 9\n").unwrap();
    let config = config.display().to_string();
    let one = ["shaping", "--config", &config, "--domain", "Example.org", "--host", "ASPMX.L.Google.com."];
    let text = out(&ringpost(&one));
    assert!(text.contains("provider     gmail\n") && text.contains("9 connections, 50 messages each"), "{text}");
    std::fs::write(&file, "[provider.gmail]\nconections = 9\n").unwrap();
    let wrong = ringpost(&one);
    assert_eq!(code(&wrong), 78);
    let text = err(&wrong);
    assert!(text.contains("shaping.toml:2:1: ") && text.contains("did you mean `connections`?"), "{text}");
}

#[test]
fn replies_are_classified_with_the_rule_that_decides() {
    let unknown = ringpost(&["classify", "550 5.1.1 <ann@example.net>: User unknown"]);
    assert_eq!(code(&unknown), 0, "{}", err(&unknown));
    let columns: Vec<String> = out(&unknown).split('\t').map(str::to_owned).collect();
    assert_eq!((&*columns[0], &*columns[1]), ("invalid-recipient", "hard"));
    assert!(columns[2].starts_with("rule no-such-mailbox (replies.toml:"), "{}", columns[2]);
    let scratch = Scratch::new("classify");
    let rules = scratch.file("own.toml", "[[rule]]\nname = \"own\"\nclass = \"quota\"\npatterns = ['user unknown']\n");
    let config = scratch.file(
        "ringpost.toml",
        &format!("[[listener]]\naddress = \"127.0.0.1:25\"\n[classification]\nrules = \"{rules}\"\n"),
    );
    let line = "550-5.1.1 user\n550 5.1.1 unknown\n421 4.7.0 try later\n";
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .args(["classify", "--json", "--config", &config])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), line.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answers: Vec<serde_json::Value> =
        out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((answers.len(), code(&output)), (2, 0));
    assert_eq!(
        (&answers[0]["class"], &answers[0]["rule"], &answers[0]["line"]),
        (&"quota".into(), &"own".into(), &4.into())
    );
    assert_eq!((&answers[1]["class"], &answers[1]["kind"]), (&"temporary-failure".into(), &"soft".into()));
    assert_eq!(code(&ringpost(&["classify", "250 ok"])), 65);
    let bad = scratch.file("own.toml", "[[rule]]\nname = \"own\"\nclass = \"quota\"\npatterns = ['(']\n");
    let checked = ringpost(&["check-config", &config]);
    assert_eq!(code(&checked), 78);
    assert!(err(&checked).contains(&format!("{bad}:4:")), "{}", err(&checked));
}

#[test]
fn wrong_flags_are_told_with_what_was_meant() {
    for (arguments, hint) in [
        (vec![], "Usage"),
        (vec!["sevre"], "'serve'"),
        (vec!["serve", "--shard", "2"], "--shards"),
        (vec!["serve", "--shards", "0"], "1..=255"),
        (vec!["serve", "--listen", "2525"], "127.0.0.1:2525"),
        (vec!["serve", "--listen", "127.0.0.1:0"], "1 to 65535"),
        (vec!["serve", "--next-hop", "a b"], "smtp.example.net:25"),
        (vec!["serve", "--retry", "soon"], "20m"),
        (vec!["serve", "--next-hop", "127.0.0.1:9", "--delivery-port", "26"], "cannot be used with"),
        (vec!["serve", "--metrics", "192.0.2.1:80"], "can be reached from elsewhere"),
        (vec!["queue", "list", "--state", "odd"], "waiting"),
        (vec!["queue", "delete"], "--all"),
        (vec!["queue", "delete", "0000000000001", "--all"], "cannot be used with"),
        (vec!["send", "--from", "a@x.test"], "--to"),
        (vec!["send", "--from", "a@x.test", "--to", "nobody"], "not a mail address"),
        (vec!["spool", "dump", "/tmp", "--segment", "x"], "00-00002a"),
    ] {
        let output = ringpost(&arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(hint), "{arguments:?}: {}", err(&output));
        assert!(out(&output).is_empty());
    }
}

#[test]
fn configurations_are_checked() {
    let scratch = Scratch::new("config");
    let good = scratch.file("good.toml", "hostname = \"mx.a.test\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n");
    let output = ringpost(&["check-config", &good]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).starts_with("ok\nhostname   mx.a.test\n"), "{}", out(&output));
    let bad = scratch.file("bad.toml", "hold = true\n[[listener]]\naddres = \"127.0.0.1:25\"\n");
    for arguments in [vec!["check-config", &bad], vec!["serve", "--config", &bad]] {
        let output = ringpost(&arguments);
        assert_eq!(code(&output), 78);
        let text = err(&output);
        assert!(text.contains(&format!("{bad}:3:1: unknown key `addres`")), "{text}");
        assert!(
            text.contains("3 | addres = ") && text.contains("| ^^^^^^") && text.contains("did you mean `address`?"),
            "{text}"
        );
    }
    assert_eq!(code(&ringpost(&["check-config", "/no/such/file"])), 66);

    // Files with certificates are read as the start will read them.
    let pair = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let (certificate, key) = (scratch.file(&format!("{name}.pem"), &made.pem()), key.serialize_pem());
        let key = scratch.file(&format!("{name}.key"), &key);
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        (certificate, key)
    };
    let ((first, first_key), (second, second_key)) = (pair("a.test"), pair("b.test"));
    for (key, line, message) in [
        (second_key.as_str(), 0, ""),
        (first_key.as_str(), 7, "the one of its first certificate"),
        ("/no/such/key", 8, "No such file"),
        (good.as_str(), 8, "chmod 640"),
    ] {
        let text = format!(
            "[tls]\ncertificate = \"{first}\"\nkey = \"{first_key}\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n\
             [[tls.pair]]\ncertificate = \"{second}\"\nkey = \"{key}\"\n"
        );
        std::fs::set_permissions(&good, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let config = scratch.file("tls.toml", &text);
        let output = ringpost(&["check-config", &config]);
        if line == 0 {
            assert_eq!(code(&output), 0, "{}", err(&output));
            assert!(out(&output).contains(&format!("certificate {second} for b.test, until ")), "{}", out(&output));
        } else {
            assert_eq!(code(&output), 78);
            assert!(err(&output).contains(&format!("{config}:{line}:")), "{}", err(&output));
            assert!(err(&output).contains(message), "{}", err(&output));
        }
    }
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/ringpost.toml");
    assert_eq!(code(&ringpost(&["check-config", &sample.display().to_string()])), 0);
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = ringpost(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains("check-config"), "{shell}");
    }
    let scratch = Scratch::new("man");
    assert_eq!(code(&ringpost(&["man", &scratch.path("pages")])), 0);
    let page = std::fs::read_to_string(scratch.0.join("pages/ringpost-serve.1")).unwrap();
    assert!(page.contains("next\\-hop"), "{page}");
}

#[test]
fn without_a_relay_the_commands_say_what_to_do() {
    let scratch = Scratch::new("absent");
    for arguments in [vec!["queue", "list"], vec!["status"], vec!["sandbox", "list"], vec!["queue", "hold", "--all"]] {
        let output = ringpost(&[&arguments[..], &["--spool", &scratch.path("none")]].concat());
        assert_eq!(code(&output), 69, "{arguments:?}");
        assert!(err(&output).contains("ringpost serve"), "{}", err(&output));
    }
    let output = ringpost(&["send", "--server", "127.0.0.1:9", "--from", "a@x.test", "--to", "b@y.test"]);
    assert_eq!(code(&output), 69, "{}", err(&output));
    let output = ringpost(&["spool", "verify", &scratch.path("none")]);
    assert_eq!(code(&output), 66);
    assert!(!scratch.0.join("none").exists(), "looking makes nothing");
    std::fs::create_dir(scratch.0.join("empty")).expect("a directory");
    for command in ["verify", "recover", "dump"] {
        let output = ringpost(&["spool", command, &scratch.path("empty")]);
        assert_eq!(code(&output), 66, "{command}");
        assert!(err(&output).contains("no spool here"), "{command}: {}", err(&output));
        assert_eq!(
            std::fs::read_dir(scratch.0.join("empty")).expect("it is there").count(),
            0,
            "looking makes nothing"
        );
    }
}

/// A relay that runs for as long as this lives.
struct Relay {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    read: String,
    server: String,
    spool: String,
}

impl Relay {
    fn start(scratch: &Scratch, flags: &[&str]) -> Relay {
        // Taken again by nobody in the moment between: ports of the ephemeral range are given out in turn.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = format!("127.0.0.1:{port}");
        let spool = scratch.path("spool");
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost"))
            .args(["serve", "--spool", &spool, "--listen", &server, "--no-metrics", "--shards", "2"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        // The recipe is printed once every shard listens. At its absence the program has ended, with words.
        while !line.starts_with("Ctrl-C") {
            line.clear();
            if printed.read_line(&mut line).unwrap() == 0 {
                let mut text = String::new();
                let _ = log.read_to_string(&mut text);
                panic!("it did not start: {text}");
            }
        }
        Relay { child, log, read: String::new(), server, spool }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        ringpost(&[arguments, &["--spool", &self.spool]].concat())
    }

    fn send(&self, to: &str) -> String {
        let output = ringpost(&["send", "--server", &self.server, "--from", "me@example.com", "--to", to]);
        assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
        let text = out(&output);
        text.trim_end().rsplit(' ').next().unwrap().to_owned()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Reads the log until a line with this text.
    fn wait_log(&mut self, text: &str) {
        let start = self.read.len();
        while !self.read[start..].contains(text) {
            assert_ne!(self.log.read_line(&mut self.read).unwrap(), 0, "{}", self.read);
        }
    }

    /// Asks it to stop; its exit code and its log.
    fn stop(mut self) -> (i32, String) {
        self.signal(libc::SIGTERM);
        self.log.read_to_string(&mut self.read).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), std::mem::take(&mut self.read))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_first_message_is_delivered_and_its_outcome_shown() {
    let scratch = Scratch::new("first");
    let mut relay = Relay::start(&scratch, &[]);
    let id = relay.send("you@example.org");
    let encrypted = ringpost(&[
        "send",
        "--server",
        &relay.server,
        "--from",
        "me@example.com",
        "--to",
        "grün@example.org",
        "--subject",
        "grün",
        "--starttls",
        "--verbose",
    ]);
    assert_eq!(code(&encrypted), 0, "{}{}", out(&encrypted), err(&encrypted));
    assert!(out(&encrypted).contains("* encrypted with TLSv1_3"), "{}", out(&encrypted));
    let list = loop {
        let list = out(&relay.run(&["sandbox", "list"]));
        if list.contains("2 messages delivered") {
            break list;
        }
    };
    assert!(list.contains(&id) && list.contains("you@example.org"), "{list}");
    let shown = relay.run(&["sandbox", "show", &id]);
    assert!(out(&shown).contains("This is a test message.") && out(&shown).contains("Received: "), "{}", out(&shown));
    assert_eq!(code(&relay.run(&["sandbox", "show", "999"])), 1);
    let status: serde_json::Value = serde_json::from_slice(&relay.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!((status["status"]["state"].as_str(), status["status"]["received"].as_u64()), (Some("running"), Some(2)));
    let second = ringpost(&["serve", "--spool", &relay.spool, "--listen", "127.0.0.1:1", "--no-metrics"]);
    assert_eq!(code(&second), 75);
    assert!(err(&second).contains("in use by another ringpost (process "), "{}", err(&second));
    let taken = ringpost(&["serve", "--spool", &scratch.path("other"), "--listen", "192.0.2.1:25", "--no-metrics"]);
    assert_eq!(code(&taken), 69);
    assert!(err(&taken).contains("cannot listen on 192.0.2.1:25"), "{}", err(&taken));
    relay.signal(libc::SIGHUP);
    // What is asked for later is told later.
    relay.wait_log("SIGHUP");
    assert_eq!(code(&relay.run(&["status"])), 0, "it lives on");
    let (ended, log) = relay.stop();
    assert!(log.contains("SIGHUP: certificates were read again: 1 in use, 0 changed"), "{log}");
    assert_eq!(ended, 0, "{log}");
    assert!(log.contains(&format!(" INFO delivered id={id} to=<you@example.org>")), "{log}");
    assert!(log.ends_with("INFO notice text=stopped\n"), "{log}");
}

#[test]
fn waiting_mail_can_be_seen_and_acted_on_and_survives_a_restart() {
    let scratch = Scratch::new("queue");
    let relay = Relay::start(&scratch, &["--hold"]);
    let first = relay.send("ann@one.test");
    let second = relay.send("bob@two.test");
    let list: serde_json::Value = serde_json::from_slice(&relay.run(&["queue", "list", "--json"]).stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
    let one = relay.run(&["queue", "list", "--domain", "one.test"]);
    assert!(out(&one).contains(&first) && !out(&one).contains(&second), "{}", out(&one));
    let shown = relay.run(&["queue", "show", &first.to_lowercase()]);
    assert!(out(&shown).contains("<ann@one.test>"), "{}", out(&shown));
    assert_eq!(code(&relay.run(&["queue", "hold", "--recipient", "bob@two.test"])), 0);
    assert_eq!(code(&relay.run(&["queue", "hold", "--domain", "three.test"])), 1);
    let deleted = relay.run(&["queue", "delete", &first]);
    assert_eq!((code(&deleted), out(&deleted).as_str()), (0, "1 recipient deleted\n"));
    assert_eq!(code(&relay.run(&["queue", "show", &first])), 1);
    assert_eq!(relay.stop().0, 0);

    let verified = ringpost(&["spool", "verify", &scratch.path("spool")]);
    assert_eq!(code(&verified), 0, "{}{}", out(&verified), err(&verified));
    assert!(out(&verified).contains("1 waiting message with 1 recipient"), "{}", out(&verified));
    let dump = ringpost(&["spool", "dump", &scratch.path("spool")]);
    assert!(out(&dump).contains(&format!("message {second} (")), "{}", out(&dump));
    let recovered = ringpost(&["spool", "recover", &scratch.path("spool")]);
    assert!(out(&recovered).contains(&format!("waiting {second}")), "{}", out(&recovered));
    assert!(out(&recovered).contains("contents were not read"), "{}", out(&recovered));

    let relay = Relay::start(&scratch, &[]);
    assert_eq!(code(&relay.run(&["queue", "release", "--all"])), 0);
    while !out(&relay.run(&["sandbox", "list"])).contains(&second) {}
    assert_eq!(relay.stop().0, 0);
}
