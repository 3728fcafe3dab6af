//! No descriptor is left: clients are told to come again, sessions that are there go on, and all is well when some close.

use super::mail::{Client, Destination, Ledger};
use super::program::{Setup, wait};

/// Descriptors that the program may have.
const DESCRIPTORS: u64 = 160;
/// Connections that want one.
const CONNECTIONS: usize = 300;

#[test]
fn without_descriptors_clients_are_told_and_nothing_is_lost() {
    let mut setup = Setup::new("descriptors");
    let (ledger, destination) = (Ledger::default(), Destination::start(true));
    setup.next_hop = Some(destination.address);
    setup.resources = vec![(libc::RLIMIT_NOFILE, DESCRIPTORS)];
    let mut program = setup.start();
    setup.wait_line(&["warn"], &["files may be open", "LimitNOFILE="]);
    ledger.send(&setup, "before", 1000).expect("mail is taken");
    ledger.wait_delivered(&setup, &destination);

    let (mut sessions, mut refused) = (Vec::new(), 0);
    for _ in 0..CONNECTIONS {
        let mut client = Client::open(setup.listen).expect("a connection");
        let greeting = client.reply().expect("a word");
        if greeting.starts_with("220 ") {
            sessions.push(client);
        } else {
            assert!(greeting.starts_with("421 4.3.2 "), "{greeting}");
            assert_eq!(client.read_to_end(), "");
            refused += 1;
        }
    }
    assert!(sessions.len() > 10 && refused > 10, "{} sessions, {refused} refused", sessions.len());
    setup.wait_line(&["error", "warn"], &["cannot be accepted", "LimitNOFILE="]);
    program.must_run(&setup);

    // Those who are in go on; a connection to the destination may have no descriptor now, and mail waits.
    for (number, client) in sessions.iter_mut().enumerate().take(5) {
        client.ask("EHLO client.example").expect("a reply");
        ledger.send_on(client, &format!("crowded{number}"), 1000).expect("mail is taken");
    }
    drop(sessions);
    wait("a session once others have closed", &setup, || ledger.send(&setup, "after", 1000).ok());
    ledger.wait_delivered(&setup, &destination);
    assert!(setup.events("bounced").is_empty(), "{}", setup.log_end());
    program.must_run(&setup);
    program.stop(&setup);
}
