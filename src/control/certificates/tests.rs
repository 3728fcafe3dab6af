//! Tests of certificates that change while the program runs.

use super::*;
use crate::control::log::{EventLog, LogFormat, LogLevel};
use crate::control::log_output::LogOutput;
use rcgen::{CertificateParams, KeyPair};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

const NOW: UnixTime = UnixTime::from_millis(1_790_000_000_000);

/// What is logged.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A directory with certificates, and a log.
struct World {
    directory: PathBuf,
    written: Written,
    log: EventLog,
}

impl World {
    fn new(name: &str) -> World {
        let directory = std::env::temp_dir().join(format!("ringpost-certificates-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let written = Written::default();
        let log = EventLog::new(LogFormat::Human, LogLevel::Info, LogOutput::new(written.clone()));
        World { directory, written, log }
    }

    /// Writes a pair that holds for so many days.
    fn write(&self, name: &str, dns: &str, days: u64) -> PairFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        let start = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(NOW.as_millis());
        (params.not_before, params.not_after) = (start, start + DAY * u32::try_from(days).unwrap());
        let certificate = params.self_signed(&key).unwrap();
        let files = self.files(name);
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    fn files(&self, name: &str) -> PairFiles {
        let file = |end: &str| self.directory.join(format!("{name}.{end}"));
        PairFiles { certificate: file("pem"), key: file("key"), awaited: false }
    }

    fn open(&self, pairs: &[&PairFiles]) -> Certificates {
        let plan = CertificatePlan {
            pairs: pairs.iter().map(|&pair| pair.clone()).collect(),
            own: Some((self.directory.clone(), "own.test".into())),
            listeners: vec![ListenerPlan { logins: false, clients: None }],
        };
        Certificates::open(plan, Some(&self.log), NOW).unwrap()
    }

    /// All that was logged; nothing is logged any more.
    fn log(&self) -> String {
        self.log.finish();
        String::from_utf8(self.written.0.lock().unwrap().clone()).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn names(certificates: &Certificates, now: UnixTime) -> Vec<String> {
    certificates.list(now).iter().map(|one| one.names.join(" ")).collect()
}

#[test]
fn a_file_that_cannot_be_used_leaves_the_old_certificate_in_use_and_is_told() {
    let world = World::new("bad");
    let (a, b) = (world.write("a", "a.test", 90), world.write("b", "b.test", 90));
    let certificates = world.open(&[&a, &b]);
    let before = certificates.list(NOW);
    assert!(before[0].default && !before[1].default && before[0].days_left == 90, "{before:?}");
    // One is renewed, the other's key is another's.
    world.write("a", "a2.test", 60);
    std::fs::write(&b.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let reloaded = certificates.reload(NOW);
    assert_eq!((reloaded.changed.len(), reloaded.failed.len(), reloaded.in_force), (1, 1, 2), "{reloaded:?}");
    assert_eq!(names(&certificates, NOW), ["a2.test", "b.test"]);
    let list = certificates.list(NOW);
    assert_eq!(list[1].fingerprint_sha256, before[1].fingerprint_sha256);
    assert!(list[0].trouble.is_none() && list[1].trouble.as_ref().unwrap().contains("b.pem"), "{list:?}");
    let log = world.log();
    assert!(
        log.contains("ERROR") && log.contains("what was read before stays in use") && log.contains("b.pem"),
        "{log}"
    );
    assert!(log.contains("a new certificate is in use") && log.contains(&list[0].fingerprint_sha256), "{log}");
    let figures = certificates.figures(NOW);
    assert_eq!((figures.reloads, figures.failures), (1, 1));
    // Put right, the trouble is over.
    world.write("b", "b.test", 90);
    assert_eq!(certificates.reload(NOW).failed.len(), 0);
    assert!(certificates.list(NOW)[1].trouble.is_none());
}

#[test]
fn files_that_change_are_seen_once_they_are_settled() {
    let world = World::new("look");
    let a = world.write("a", "a.test", 90);
    let certificates = world.open(&[&a]);
    // The files' own times are those of this machine.
    let now = crate::io::clock::now().unix;
    assert_eq!(certificates.look(now.after(SETTLED * 2)), None);
    world.write("a", "a2.test", 90);
    let now = crate::io::clock::now().unix;
    assert_eq!(certificates.look(now), None, "others may follow at once");
    let later = now.after(SETTLED * 2);
    assert_eq!(certificates.look(later).unwrap().changed.len(), 1);
    assert_eq!(names(&certificates, now), ["a2.test"]);
    assert_eq!(certificates.look(later), None);
    // A file that is bad is told once, not each minute.
    std::fs::write(&a.certificate, "nothing").unwrap();
    assert_eq!(certificates.look(later).unwrap().failed.len(), 1);
    assert_eq!(certificates.look(later), None);
    // What links lead to counts, as certbot has it.
    let link = world.files("link");
    std::os::unix::fs::symlink("a.pem", &link.certificate).unwrap();
    std::os::unix::fs::symlink("a.key", &link.key).unwrap();
    world.write("a", "a3.test", 90);
    let certificates = world.open(&[&link]);
    world.write("b", "b.test", 90);
    for end in ["pem", "key"] {
        let new = world.directory.join("new");
        std::os::unix::fs::symlink(format!("b.{end}"), &new).unwrap();
        std::fs::rename(&new, world.directory.join(format!("link.{end}"))).unwrap();
    }
    assert_eq!(certificates.look(later).unwrap().changed.len(), 1);
    assert_eq!(names(&certificates, now), ["b.test"]);
}

#[test]
fn an_awaited_certificate_takes_the_place_of_the_own_one() {
    let world = World::new("awaited");
    let awaited = PairFiles { awaited: true, ..world.files("a") };
    let certificates = world.open(&[&awaited]);
    assert_eq!(names(&certificates, NOW), ["own.test"]);
    assert!(world.log().contains("made a certificate, signed by itself"));
    assert_eq!(certificates.reload(NOW), Reloaded { in_force: 1, ..Reloaded::default() });
    world.write("a", "a.test", 90);
    assert_eq!(certificates.reload(NOW).changed.len(), 1);
    assert_eq!(names(&certificates, NOW), ["a.test"]);
}

#[test]
fn the_own_certificate_is_made_anew_before_its_end() {
    let world = World::new("own");
    let certificates = world.open(&[]);
    let first = certificates.list(NOW);
    let near = NOW.after(DAY * (365 * 10 - 29));
    assert_eq!(certificates.look(NOW.after(DAY)), None);
    assert_eq!(certificates.look(near).unwrap().changed.len(), 1);
    let second = certificates.list(near);
    assert_ne!(first[0].fingerprint_sha256, second[0].fingerprint_sha256);
    assert_eq!(certificates.look(near), None);
}

/// On which days of its life a certificate is warned of, and whether as one that has ended. Counted in hours, each looked at
/// twice, four days beyond the end.
fn warned(name: &str, days: u64) -> Vec<(u64, bool)> {
    let world = World::new(name);
    let a = world.write("a", "a.test", days);
    let certificates = world.open(&[&a]);
    let mut warned = Vec::new();
    for hour in 0..(days + 4) * 24 {
        let at = NOW.after(Duration::from_secs(hour * 3600 + 1));
        for _ in 0..2 {
            for (severity, text) in certificates.state().warnings(at) {
                assert!(text.contains("a.pem for a.test"), "{text}");
                assert_eq!(text.contains("has ended"), severity == Severity::Error);
                warned.push((hour / 24, severity == Severity::Error));
            }
        }
    }
    warned
}

#[test]
fn a_certificate_that_ends_is_warned_of_in_steps_and_daily_once_it_is_over() {
    let ended = |from: u64| (from..from + 4).map(|day| (day, true)).collect::<Vec<_>>();
    let expected = [(170, false), (186, false), (193, false), (197, false), (199, false)];
    assert_eq!(warned("warnings", 200), [&expected[..], &ended(200)].concat());
    // One of a short life is renewed later.
    assert_eq!(warned("short", 10), [&[(7, false), (9, false)][..], &ended(10)].concat());
}
