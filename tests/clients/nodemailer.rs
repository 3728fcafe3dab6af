//! nodemailer, the usual client of programs in JavaScript, driven by a small program of ours (nodemailer.js): both submission
//! ports, logins by password and token, and a message as it makes it itself.

use super::auth::add;
use super::oauth::{Key, claims, section};
use super::programs::{program, run, skip};
use super::relay::{Directory, Relay, Setup};
use super::sink::Sink;
use serde_json::{Value, json};
use std::path::Path;

/// Where Debian keeps modules of packages; other installations of node do not look there by themselves.
const MODULES: &str = "/usr/share/nodejs";

/// Sends mails with this transport. None: there is no node, or no nodemailer.
fn send(transport: &Value, mails: Value) -> Option<Vec<Value>> {
    let mut node = program("node")?;
    if !Path::new(MODULES).join("nodemailer").exists() {
        skip("nodemailer is not installed; apt-get install node-nodemailer");
        return None;
    }
    node.env("NODE_PATH", MODULES).arg("--eval").arg(include_str!("nodemailer.js"));
    let order = json!({ "transport": transport, "mails": mails });
    let finished = run(node, order.to_string().as_bytes()).succeeded();
    Some(serde_json::from_str(&finished.stdout).expect("the script prints JSON"))
}

/// The relay's own certificate is not one that anybody vouches for.
fn transport(relay: &Relay, more: &Value) -> Value {
    let mut transport = json!({
        "host": "127.0.0.1", "port": relay.address.port(), "name": "app.example.com",
        "tls": { "rejectUnauthorized": false, "servername": "relay.test" },
    });
    for (key, value) in more.as_object().expect("an object of options") {
        transport[key] = value.clone();
    }
    transport
}

fn mail(recipient: &str) -> Value {
    json!({
        "from": "Ann <ann@origin.test>", "to": recipient, "bcc": "hidden@dest.test", "subject": "Grüße",
        "text": "Hello.\n.\nA line with a dot stood before this one.\n", "html": "<p>Hello.</p>",
        "attachments": [{ "filename": "all.bin", "content": "AAECAwQFBgcICQoLDA0ODw==", "encoding": "base64" }],
    })
}

#[test]
fn nodemailer_on_both_submission_ports() {
    let sink = Sink::new();
    let starttls = ("kind = \"submission\"", json!({ "secure": false, "requireTLS": true }));
    let implicit = ("kind = \"submission\"\ntls = \"implicit\"", json!({ "secure": true }));
    for (name, (listener, options)) in [("starttls", starttls), ("implicit", implicit)] {
        let relay = Setup::new().listener(listener).next_hop(sink.address).start();
        let password = add(&relay, "app", &[]);
        for method in ["PLAIN", "LOGIN"] {
            let mut options = options.clone();
            options["auth"] = json!({ "user": "app", "pass": password });
            options["authMethod"] = method.into();
            let recipient = format!("{name}-{method}@dest.test").to_lowercase();
            let Some(sent) = send(&transport(&relay, &options), json!([mail(&recipient)])) else { return };
            assert_eq!(sent[0]["accepted"], json!([recipient, "hidden@dest.test"]), "{sent:?}");
            assert!(sent[0]["response"].as_str().is_some_and(|text| text.starts_with("250 2.0.0 OK: queued as ")));
            let arrived = sink.wait_for(&recipient);
            let text = arrived.text();
            assert!(text.contains("from app.example.com ([127.0.0.1])"), "{text}");
            assert!(text.contains("with ESMTPSA (TLSv1.3 "), "{text}");
            assert!(text.contains("Hello.\r\n.\r\nA line"), "{text}");
            assert!(!text.contains("hidden@dest.test"), "{text}");
        }
        let mut options = options.clone();
        options["auth"] = json!({ "user": "app", "pass": "wrong" });
        let refused = send(&transport(&relay, &options), json!([mail("never@dest.test")])).expect("it is there");
        assert_eq!((&refused[0]["code"], &refused[0]["status"]), (&"EAUTH".into(), &535.into()), "{refused:?}");
        // Without a login nothing is relayed.
        let refused =
            send(&transport(&relay, &json!({ "secure": options["secure"] })), json!([mail("never@dest.test")]));
        assert_eq!(refused.expect("it is there")[0]["status"], 530);
        relay.stop();
    }
}

#[test]
fn nodemailer_logs_in_with_a_token() {
    let (sink, key, directory) = (Sink::new(), Key::new("first"), Directory::new());
    let keys = directory.file("keys.json", key.set());
    let relay = Setup::new()
        .listener("kind = \"submission\"\ntls = \"implicit\"\nauth_mechanisms = [\"XOAUTH2\"]")
        .sections(&section(&format!("keys = {keys:?}")))
        .next_hop(sink.address)
        .start_in(directory);
    add(&relay, "app", &[]);
    let login = |token: &str| {
        let auth = json!({ "type": "OAuth2", "user": "app", "accessToken": token });
        send(&transport(&relay, &json!({ "secure": true, "auth": auth })), json!([mail("token@dest.test")]))
    };
    let Some(sent) = login(&key.sign(&claims("app", json!({})))) else { return };
    assert!(sent[0]["response"].as_str().is_some_and(|text| text.starts_with("250 2.0.0 ")), "{sent:?}");
    assert!(sink.wait_for("token@dest.test").text().contains("with ESMTPSA (TLSv1.3 "));
    let refused = login(&key.sign(&claims("app", json!({ "exp": 1 })))).expect("it is there");
    assert_eq!(refused[0]["code"], "EAUTH", "{refused:?}");
    relay.stop();
}
