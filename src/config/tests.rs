//! What wrong configurations are told: file, line, column, the line itself, and a hint. And that the documents agree
//! with the parser.

use super::*;
use crate::smtp::server::{Strangers, Tarpit};

/// A text, and what its error must say: line, column, a part of the message, a part of the hint.
struct Wrong(&'static str, usize, usize, &'static str, &'static str);

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:25\"\n";

#[test]
fn mistakes_are_told_with_their_place_and_a_hint() {
    let table = [
        // What TOML itself forbids.
        Wrong("hostname = \n", 1, 12, "", ""),
        Wrong("[spool\n", 1, 7, "", ""),
        Wrong("hold = true\nhold = false\n", 2, 1, "duplicate key", ""),
        // Unknown keys, with the nearest known one.
        Wrong("hsotname = \"a.test\"\n", 1, 1, "unknown key `hsotname`", "did you mean `hostname`?"),
        Wrong("[limits]\nrecipient = 5\n", 2, 1, "unknown key `recipient`", "did you mean `recipients`?"),
        Wrong("[[listener]]\nadress = \"127.0.0.1:25\"\n", 2, 1, "unknown key `adress`", "did you mean `address`?"),
        Wrong("[[route]]\n[route.timeouts]\nbaner = \"1s\"\n", 3, 1, "unknown key `baner`", "did you mean `banner`?"),
        Wrong("[xyzzy]\n", 1, 2, "unknown key `xyzzy`", "known keys here: hostname, shards"),
        // Values of a wrong kind.
        Wrong("hold = \"yes\"\n", 1, 8, "expected a boolean", ""),
        Wrong("hostname = \"a b\"\n", 1, 12, "`a b` is not a domain name", ""),
        Wrong("[retry]\nfirst = 20\n", 2, 9, "a duration, as in \"20m\"", ""),
        Wrong("[retry]\nfirst = \"20 minutes\"\n", 2, 9, "is not a duration", ""),
        Wrong("[limits]\nmessage_size = \"big\"\n", 2, 16, "is not a size", ""),
        Wrong("[[route]]\nrate = \"100\"\n", 2, 8, "is not a rate", ""),
        Wrong("[limits]\nconnections_per_client = 100\n", 2, 26, "a rate, as in \"600/1m\", or \"unlimited\"", ""),
        Wrong("[[route]]\nnext_hops = [\"a.test:25\", \"b.test:0\"]\n", 2, 27, "no port 0", ""),
        Wrong("[[route]]\ndomains = \"a..b\"\n", 2, 11, "expected a domain", ""),
        Wrong("[[listener]]\naddress = \"25\"\n", 2, 11, "an address with a port", ""),
        Wrong("[[listener]]\naddress = [\"127.0.0.1:25\", \"x\"]\n", 2, 28, "an address with a port", ""),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\ntrusted = \"10.0.0.0/40\"\n", 3, 11, "a network", ""),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\nhelo_checks = \"ptr\"\n", 3, 15, "a check of names", ""),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\nkind = \"relai\"\n", 3, 8, "unknown variant `relai`", ""),
        Wrong("[[listener]]\ntls = \"none\"\n", 1, 1, "missing field `address`", ""),
        Wrong("[dns]\nservers = \"ns.test\"\n", 2, 11, "a name server's address", ""),
    ];
    for Wrong(text, line, column, message, hint) in table {
        let error = Config::parse(text).expect_err(text);
        let place = error.place.clone().unwrap_or_else(|| panic!("{text}: no place: {error}"));
        assert_eq!((place.line, place.column), (line, column), "{text}\n{error}");
        assert!(error.message.contains(message), "{text}\n{error}");
        assert!(error.hint.as_deref().unwrap_or("").contains(hint), "{text}\n{error}");
        assert!(error.to_string().contains(&format!("{line} | {}", place.text)), "{error}");
    }
}

#[test]
fn what_keys_must_satisfy_together_is_told_with_the_line_of_the_key() {
    let table = [
        Wrong("shards = 300\n", 1, 10, "300 shards", "1 to 255"),
        Wrong("[spool]\nsegment_size = \"1KiB\"\n", 2, 16, "1KiB cannot be used", "64MiB is the default"),
        Wrong("[spool]\nspill_above = \"1GiB\"\n", 2, 15, "cannot be used", "quarter of a segment"),
        Wrong("[spool]\nspares = 0\n", 2, 10, "0 cannot be used", "1 to 1024"),
        Wrong("[[listener]]\naddress = \"127.0.0.1:0\"\n", 2, 11, "has no port", ""),
        Wrong("[[listener]]\naddress = []\n", 2, 11, "the list is empty", ""),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n",
            4,
            11,
            "127.0.0.1:25 is listened on twice",
            "",
        ),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\ntenant = \"\"\n", 3, 10, "not a tenant's name", ""),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\ntenant_header = \"X:\"\n", 3, 17, "not a header's name", ""),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\nrequired_headers = [\"Date\", \"a b\"]\n",
            3,
            20,
            "`a b` is not a header's name",
            "without a colon",
        ),
        Wrong(
            "[[listener]]\naddress = \"0.0.0.0:25\"\nauth_in_clear = true\n",
            3,
            17,
            "others than this machine",
            "use TLS",
        ),
        Wrong(
            "[[listener]]\naddress = \"[::1]:25\"\nproxy = true\nauth_in_clear = true\n",
            4,
            17,
            "others than this machine",
            "use TLS",
        ),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\nauth_mechanisms = [\"CRAM-MD5\"]\n",
            3,
            20,
            "no mechanism that is known",
            "",
        ),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\nauth_mechanisms = []\n", 3, 19, "the list is empty", "as in"),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\nrecipients = 5\n", 3, 14, "5 cannot be used", "RFC 5321"),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\nclient_certificates = \"request\"\n",
            3,
            23,
            "who proves clients",
            "client_authorities",
        ),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\nclient_authorities = \"a.pem\"\n",
            3,
            22,
            "are not asked",
            "require",
        ),
        Wrong(
            "[[listener]]\naddress = \"127.0.0.1:25\"\ntls = \"none\"\nclient_certificates = \"require\"\nclient_authorities = \"a.pem\"\n",
            4,
            23,
            "without TLS",
            "starttls",
        ),
        Wrong("[tls]\ncertificate = \"a.pem\"\n", 2, 15, "without its key", "add key"),
        Wrong(
            "[tls.acme]\ndirectory = \"http://acme.example/\"\n",
            2,
            13,
            "no address of HTTPS",
            "the server's directory",
        ),
        Wrong("[tls.acme]\ndirectory = \"https://acme.example/\"\n", 1, 1, "agree to its terms", "terms_agreed = true"),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\n",
            1,
            1,
            "shown that the names are ours",
            "http =",
        ),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\nexternal_account = \"a\"\n",
            1,
            1,
            "belong together",
            "or neither",
        ),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\ndomains = \"*.a.test\"\n",
            4,
            11,
            "a wildcard is proven by DNS alone",
            "",
        ),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\ncontact = \"mailto:a@b.test\"\n",
            4,
            11,
            "no mail address",
            "as in",
        ),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\nhttp = \"127.0.0.1:25\"\n",
            4,
            8,
            "listened on already",
            "one thing",
        ),
        Wrong(
            "[tls.acme]\ndirectory = \"https://acme.example/directory\"\nterms_agreed = true\nalpn = \"127.0.0.1:0\"\n",
            4,
            8,
            "has no port",
            "443",
        ),
        Wrong("[[tls.pair]]\ncertificate = \"a.pem\"\n", 1, 1, "missing field `key`", ""),
        Wrong(
            "[tls]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n[[tls.pair]]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n",
            5,
            15,
            "a.pem is named twice",
            "once is enough",
        ),
        Wrong("[[route]]\nname = \"a b\"\n", 2, 8, "not a route's name", ""),
        Wrong(
            "[[route]]\nname = \"a\"\ndomains = \"x.test\"\n[[route]]\nname = \"a\"\n",
            5,
            8,
            "taken by an earlier route",
            "",
        ),
        Wrong("[[route]]\n[[route]]\ndomains = \"x.test\"\n", 2, 1, "never taken", "route number 1"),
        Wrong("[[route]]\ntarget = \"mx\"\nnext_hops = \"a.test\"\n", 2, 10, "exclude each other", ""),
        Wrong("[[route]]\ntarget = \"sandbox\"\n", 2, 10, "not enabled", "[sandbox]"),
        Wrong("[[route]]\nport = 26\nnext_hops = \"a.test\"\n", 2, 8, "hosts found by MX", "smtp.example.net:2525"),
        Wrong("[[route]]\nconnections = 0\n", 2, 15, "deliver nothing", "hold = true"),
        Wrong("[[route]]\nrecipients_per_transaction = 0\n", 2, 30, "0 cannot be used", ""),
        Wrong("[[route]]\n[route.timeouts]\nmail = \"10ms\"\n", 3, 8, "shorter than a second", ""),
        Wrong("[retry]\nfirst = \"5h\"\n", 1, 1, "4h is less than `first` (5h)", ""),
        Wrong("[retry]\nmax = \"1m\"\n", 2, 7, "1m is less than `first` (20m)", ""),
        Wrong("[retry]\njitter = 101\n", 2, 10, "101 percent", ""),
        Wrong("[retry]\nlifetime = \"1m\"\n", 2, 12, "less than `first`", ""),
        Wrong("[retry]\ndelay_warning = \"6d\"\n", 2, 17, "given up already", "never"),
        Wrong("[limits]\nmessage_size = \"1KB\"\n", 2, 16, "1KB cannot be used", "64KiB"),
        Wrong("busy_poll = \"1s\"\n", 1, 13, "keep a core busy", "100ms"),
        Wrong("[limits]\nsessions = 0\n", 2, 12, "0 would refuse everything", ""),
        Wrong("[limits]\ntarpit_delay = \"2m\"\n", 2, 16, "longer than a minute", "some seconds"),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\ngreet_delay = \"2m\"\n", 3, 15, "longer than a minute", ""),
        Wrong("[limits]\nsessions_per_network = 0\n", 2, 24, "0 would refuse everything", ""),
        Wrong("[limits]\nconnections_per_client = \"90000/1m\"\n", 2, 26, "more than a thousand", "unlimited"),
        Wrong("[admin]\nmetrics = \"0.0.0.0:9525\"\n", 2, 11, "can be reached from elsewhere", "proxy"),
        Wrong("[dns]\nattempts = 0\n", 1, 1, "out of bounds", "1 to 10"),
        Wrong("[oauth]\nissuers = \"i\"\n", 1, 1, "oauth.audiences: is needed", "made for others"),
        Wrong("[oauth]\nissuers = \"i\"\naudiences = \"a\"\n", 1, 1, "how tokens are checked", "keys"),
        Wrong(
            "[oauth]\nissuers = \"i\"\naudiences = \"a\"\nkeys = \"http://id.example/keys\"\n",
            4,
            8,
            "no address of HTTPS",
            "https://",
        ),
        Wrong("[oauth]\nalgorithms = [\"HS256\"]\n", 2, 15, "no algorithm that tokens", ""),
        Wrong("[[filter]]\nmilter = \"127.0.0.1:8891\"\n", 1, 1, "needs a name", "64"),
        Wrong("[[filter]]\nname = \"a\"\n", 2, 8, "how this filter is asked", "either milter"),
        Wrong("[[filter]]\nname = \"a\"\nmilter = \"unix:run\"\n", 3, 10, "not a whole path", ""),
        Wrong("[[filter]]\nname = \"a\"\nrspamd = \"127.0.0.1:11333\"\n", 3, 10, "no address of HTTP", "http://HOST"),
        Wrong(
            "[[filter]]\nname = \"a\"\nrspamd = \"http://spam.example:11333\"\npassword_file = \"p\"\n",
            3,
            10,
            "in clear",
            "https://",
        ),
        Wrong(
            "[[filter]]\nname = \"a\"\nmilter = \"127.0.0.1:1\"\non_failure = \"drop\"\n",
            4,
            14,
            "expected \"defer\"",
            "",
        ),
        Wrong(
            "[[filter]]\nname = \"a\"\nmilter = \"127.0.0.1:1\"\ntimeout = \"5m\"\n",
            4,
            11,
            "clients wait for",
            "2m",
        ),
        Wrong("[[listener]]\naddress = \"127.0.0.1:25\"\nfilters = \"x\"\n", 3, 11, "no filter `x`", "filters = []"),
        Wrong("[sandbox]\nlisten = \"0.0.0.0:0\"\n", 2, 10, "can be reached from elsewhere", ""),
        Wrong("[sandbox]\nkeep = 0\n", 2, 8, "0 cannot be used", ""),
    ];
    for Wrong(part, line, column, message, hint) in table {
        let own_listener = part.contains("[[listener]]");
        let text = if own_listener { part.to_owned() } else { format!("{part}{LISTENER}") };
        let error = Config::parse(&text).expect_err(part);
        let place = error.place.clone().unwrap_or_else(|| panic!("{part}: no place: {error}"));
        assert_eq!((place.line, place.column), (line, column), "{part}\n{error}");
        assert!(error.message.contains(message), "{part}\n{error}");
        assert!(error.hint.as_deref().unwrap_or("").contains(hint), "{part}\n{error}");
    }
    let error = Config::parse("hold = true\n").expect_err("no listener");
    assert!(error.message.contains("no [[listener]]"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/no/such/ringpost.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/ringpost.toml: the configuration cannot be read"), "{error}");
}

#[test]
fn every_key_can_be_set() {
    let text = r#"
        hostname = "Mx.Example.NET"
        shards = 4
        busy_poll = "1ms"
        hold = true
        [spool]
        dir = "/srv/spool"
        segment_size = "16MiB"
        spares = 3
        content_memory = "128MiB"
        spill_above = "1MiB"
        retained_content = 0
        [[listener]]
        address = ["0.0.0.0:25", "[::]:25"]
        kind = "relay"
        tls = "starttls"
        tenant = "acme"
        tenant_header = "X-Tenant"
        tenant_subaddress = true
        required_headers = "Message-ID"
        proxy = true
        bare_newlines = "convert"
        trusted = ["192.0.2.0/24", "2001:db8::1"]
        client_certificates = "request"
        client_authorities = "clients.pem"
        greet_delay = "2s"
        helo_checks = ["qualified", "foreign"]
        message_size = "10MB"
        recipients = 500
        [tls]
        certificate = "chain.pem"
        key = "key.pem"
        [[tls.pair]]
        certificate = "second.pem"
        key = "second.key"
        [tls.acme]
        directory = "https://acme.example/directory"
        terms_agreed = true
        contact = "postmaster@example.net"
        external_account = "kid-1"
        external_account_key_file = "eab.key"
        domains = ["mx.example.net", "mail.example.net"]
        http = "0.0.0.0:80"
        alpn = ["0.0.0.0:443", "[::]:443"]
        authorities = "roots.pem"
        [[route]]
        name = "partner"
        domains = ["example.com", ".example.com"]
        next_hops = ["smtp.example.com:26", "192.0.2.9"]
        connections = 5
        rate = "100/1m burst 10"
        messages_per_connection = 50
        recipients_per_transaction = 20
        source = "192.0.2.20"
        ehlo_name = "out.example.net"
        tls = "verified"
        assume_8bitmime = true
        chunking = false
        pipelining = false
        connect_timeout = "3s"
        idle_timeout = "1s"
        connection_rate = "10/1m"
        shaping = false
        adapt = false
        tls_options = { names = ["mail.example.com"], min_version = "1.3", certificate = "own.pem", key = "own.key", mta_sts = false, dane = true }
        timeouts = { banner = "10s", hello = "10s", mail = "10s", rcpt = "10s", data = "10s", block = "10s", final_dot = "1m" }
        [[route]]
        target = "mx"
        port = 2525
        [shaping]
        shipped = true
        [outbound_tls]
        authorities = "roots.pem"
        policy_port = 8443
        policy_networks = "127.0.0.0/8"
        trust_anchors = "anchors"
        [retry]
        first = "1m"
        factor = 3
        max = "1h"
        jitter = 0
        lifetime = "2d"
        delay_warning = "never"
        [suppression]
        at_rcpt = "refuse"
        hard_bounces = false
        hard_lifetime = "never"
        soft_bounces = 3
        soft_period = "7d"
        soft_lifetime = "never"
        [limits]
        message_size = "20MB"
        large_message = "5MB"
        recipients = 200
        sessions = 1
        sessions_per_client = 1
        sessions_per_network = 2
        connections_per_client = "60/1m"
        connections_per_network = "unlimited"
        loopback_exempt = true
        commands = 10
        errors = 3
        tarpit_after = 2
        tarpit_delay = "3s"
        tarpit_sessions = 7
        transactions = 7
        command_timeout = "1m"
        data_timeout = "1m"
        message_timeout = "5m"
        received_headers = 30
        [admin]
        socket = "/run/ringpost.sock"
        metrics = "[::1]:9525"
        [process]
        user = "mail"
        landlock = false
        readable = ["/srv/keys"]
        core_dumps = true
        [log]
        format = "json"
        level = "warning"
        [dns]
        servers = ["192.0.2.53", "[2001:db8::53]:5353"]
        port = 54
        timeout = "1s"
        attempts = 3
        concurrency = 10
        [sandbox]
        enabled = true
        listen = "127.0.0.1:2626"
        keep = 10
    "#;
    let config = Config::parse(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(&*config.effective_hostname(), "mx.example.net");
    assert_eq!(config.admin_socket(), Path::new("/run/ringpost.sock"));
    let settings = settings::settings(&config, None);
    assert_eq!(settings.listeners.len(), 2);
    assert_eq!(&*settings.listeners[1].tenant, "acme");
    assert_eq!(settings.listeners[0].session.max_recipients, 500);
    assert!(settings.listeners[0].relay.may_relay([192, 0, 2, 77].into(), false, false).is_ok());
    assert!(settings.listeners[0].relay.may_relay([127, 0, 0, 1].into(), false, false).is_err());
    let seconds = std::time::Duration::from_secs;
    let tarpit = Some(Tarpit { after: 2, delay: seconds(3) });
    let strangers = Strangers { greet_delay: seconds(2), qualified_hello: true, foreign_hello: true, tarpit };
    assert_eq!((&settings.listeners[0].session.strangers, settings.max_tarpitted), (&strangers, 7));
    assert_eq!(settings.max_sessions_per_network, 2);
    let connect = || settings.connection_rates.admit([192, 0, 2, 77].into(), crate::clock::Instant::ZERO);
    assert_eq!((0..100).filter(|_| connect().is_ok()).count(), 60, "the whole count may come at once");
    assert_eq!(settings.routes.len(), 2);
    assert_eq!(settings.routes[1].target, crate::shard::settings::Target::Mx { port: 2525 });
    assert_eq!(settings.schedule.delay_warning, None);
    assert_eq!(&*settings.routes[0].client.ehlo_name, "out.example.net");
}

#[test]
fn the_defaults_are_those_of_the_issue() {
    let config = Config::parse(LISTENER).unwrap();
    let settings = settings::settings(&config, None);
    let minutes = |minutes: u64| std::time::Duration::from_secs(minutes * 60);
    assert_eq!(settings.listeners[0].session.max_message_size, 52_428_800);
    assert_eq!((settings.schedule.first, settings.schedule.max), (minutes(20), minutes(240)));
    assert_eq!((settings.schedule.factor, settings.schedule.jitter_percent), (2, 10));
    assert_eq!(settings.schedule.lifetime, minutes(5 * 24 * 60));
    assert_eq!((settings.large_message, settings.max_received_headers), (25_000_000, 100));
    assert_eq!((settings.spill_above, settings.segment_size), (256 << 10, 64 << 20));
    assert!(settings.routes[0].connect_timeout < std::time::Duration::from_secs(5));
    let relay = &settings.listeners[0];
    assert!(relay.session.bare_newlines == crate::smtp::server::BareNewlines::Refuse && !relay.submission);
    assert!(relay.session.starttls && !settings.lift_loopback_limits);
    assert_eq!(relay.session.strangers, Strangers::default());
}

/// The keys that a section knows, as its error lists them.
fn known_keys(section: &str) -> Vec<String> {
    let text = format!("{section}\n_ = 1\n");
    let error = toml::from_str::<Config>(&text).expect_err("the key _ is unknown").message().to_owned();
    error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let document = include_str!("../../docs/CONFIGURATION.md");
    for (section, header) in [
        ("### Top level", ""),
        ("### `[spool]`", "[spool]"),
        ("### `[[listener]]`", "[[listener]]"),
        ("### `[tls]`", "[tls]"),
        ("### `[[tls.pair]]`", "[[tls.pair]]"),
        ("### `[tls.acme]`", "[tls.acme]"),
        ("### `[oauth]`", "[oauth]"),
        ("### `[[filter]]`", "[[filter]]"),
        ("### `[[route]]`", "[[route]]"),
        ("### `[route.timeouts]`", "[[route]]\n[route.timeouts]"),
        ("### `[route.tls_options]`", "[[route]]\n[route.tls_options]"),
        ("### `[shaping]`", "[shaping]"),
        ("### `[classification]`", "[classification]"),
        ("### `[outbound_tls]`", "[outbound_tls]"),
        ("### `[retry]`", "[retry]"),
        ("### `[suppression]`", "[suppression]"),
        ("### `[limits]`", "[limits]"),
        ("### `[admin]`", "[admin]"),
        ("### `[process]`", "[process]"),
        ("### `[log]`", "[log]"),
        ("### `[dns]`", "[dns]"),
        ("### `[sandbox]`", "[sandbox]"),
    ] {
        let (_, after) =
            document.split_once(&format!("\n{section}\n")).unwrap_or_else(|| panic!("{section} is missing"));
        let text = after.split("\n### ").next().unwrap_or_default().split("\n## ").next().unwrap_or_default();
        let documented: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `").and_then(|rest| rest.split_once('`')))
            .map(|(key, _)| key.to_owned())
            .collect();
        let is_table = |key: &String| {
            header.is_empty() && document.contains(&format!("[{key}]"))
                || ["timeouts", "tls_options", "pair", "acme"].contains(&&**key)
        };
        let known: Vec<String> = known_keys(header).into_iter().filter(|key| !is_table(key)).collect();
        assert_eq!(documented, known, "{section}");
    }
}

#[test]
fn the_sample_can_be_used_as_it_is() {
    let config = Config::parse(include_str!("../../config/ringpost.toml")).unwrap_or_else(|error| panic!("{error}"));
    let ports: Vec<u16> = settings::listen_addresses(&config).iter().map(std::net::SocketAddr::port).collect();
    for port in [25, 587, 465] {
        assert!(ports.contains(&port), "{port}");
    }
    assert!(config.summary().contains("submission"), "{}", config.summary());
}
