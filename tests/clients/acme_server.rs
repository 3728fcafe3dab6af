//! A server of ACME (RFC 8555) made for these tests, with the strictness of a real one: HTTPS with a certificate of an authority of
//! its own, nonces that are good once, requests whose signatures (ES256) it verifies, accounts, orders, authorizations, challenges
//! that it really looks at (http-01 and tls-alpn-01, at ports that the test names), certificates that it signs for the request it
//! was given. It can be told to want accounts of customers, to refuse nonces, to find nothing at a challenge, to have had enough, and to forget its accounts.

use super::relay::Directory;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How the server behaves from now on.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Good nonces that are refused all the same.
    pub bad_nonces: u32,
    /// Challenges at which it pretends to find nothing.
    pub failing_challenges: u32,
    /// Orders that are too many, with the seconds until the next is welcome.
    pub limited: Option<u32>,
    /// How long certificates have been good for, and how long they will be.
    pub life: (Duration, Duration),
    /// New accounts must belong to this one, by this key.
    pub external: Option<(String, Vec<u8>)>,
}

#[derive(Debug)]
struct Account {
    /// The public key: x and y.
    key: Vec<u8>,
    /// RFC 7638.
    thumbprint: String,
}

#[derive(Debug)]
struct Authorization {
    name: String,
    token: String,
    /// The account's thumbprint.
    thumbprint: String,
    status: &'static str,
    error: Value,
}

#[derive(Debug)]
struct Order {
    authorizations: Vec<usize>,
    /// Of the certificate; "" before it is asked for.
    certificate: String,
    /// The certificate has been waited for once.
    waited: bool,
}

#[derive(Debug, Default)]
struct State {
    nonces: HashSet<String>,
    next: u64,
    accounts: HashMap<String, Account>,
    authorizations: Vec<Authorization>,
    orders: Vec<Order>,
    /// Signed requests whose nonce was refused.
    refused_nonces: u32,
    accounts_made: u32,
}

/// The running server.
pub struct AcmeServer {
    address: SocketAddr,
    /// PEM of the authority that proves its name.
    pub root: PathBuf,
    shared: Arc<Shared>,
    _directory: Directory,
}

struct Shared {
    base: String,
    behaviour: Mutex<Behaviour>,
    state: Mutex<State>,
    /// Signs certificates.
    issuer: Issuer<'static, KeyPair>,
    issuer_certificate: CertificateDer<'static>,
    issuer_pem: String,
    /// Where http-01 and tls-alpn-01 are looked for.
    ports: (u16, u16),
}

/// What a request is answered with.
struct Answer {
    status: &'static str,
    kind: &'static str,
    location: Option<String>,
    retry_after: Option<u32>,
    body: String,
}

impl Answer {
    fn json(status: &'static str, body: &Value) -> Answer {
        Answer { status, kind: "application/json", location: None, retry_after: None, body: body.to_string() }
    }

    fn at(self, location: String) -> Answer {
        Answer { location: Some(location), ..self }
    }

    fn problem(status: &'static str, kind: &str, detail: &str) -> Answer {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let answer = Answer::json(status, &json!({ "type": kind, "detail": detail }));
        Answer { kind: "application/problem+json", ..answer }
    }
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, CertificateDer<'static>, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key).expect("a certificate");
    let (der, pem) = (certificate.der().clone(), certificate.pem());
    (Issuer::new(params, key), der, pem)
}

impl AcmeServer {
    /// Starts one that comes to these ports of loopback for http-01 and tls-alpn-01.
    pub fn start(http: u16, alpn: u16) -> AcmeServer {
        let directory = Directory::new();
        let (own, _, root) = authority("the authority of the server itself");
        let root = directory.file("root.pem", root);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let certificate = params.signed_by(&key, &own).expect("a certificate").der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        let config = Arc::new(config.expect("they belong together"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (issuer, issuer_certificate, issuer_pem) = authority("the authority of the certificates");
        let life = (Duration::from_secs(3600), Duration::from_secs(90 * 24 * 3600));
        let behaviour = Behaviour { bad_nonces: 0, failing_challenges: 0, limited: None, life, external: None };
        let shared = Arc::new(Shared {
            base: format!("https://{address}"),
            behaviour: Mutex::new(behaviour),
            state: Mutex::default(),
            issuer,
            issuer_certificate,
            issuer_pem,
            ports: (http, alpn),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (shared, config) = (Arc::clone(&of_thread), Arc::clone(&config));
                std::thread::spawn(move || shared.converse(socket, config));
            }
        });
        AcmeServer { address, root, shared, _directory: directory }
    }

    pub fn directory_url(&self) -> String {
        format!("https://{}/directory", self.address)
    }

    /// The authority of the certificates it makes.
    pub fn issuer(&self) -> CertificateDer<'static> {
        self.shared.issuer_certificate.clone()
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().expect("behaviour"));
    }

    /// Accounts made, orders, nonces refused, so far.
    pub fn counts(&self) -> (u32, usize, u32) {
        let state = self.shared.state();
        (state.accounts_made, state.orders.len(), state.refused_nonces)
    }

    pub fn forget_accounts(&self) {
        self.shared.state().accounts.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    /// All requests of one connection.
    fn converse(&self, socket: TcpStream, config: Arc<ServerConfig>) {
        let connection = ServerConnection::new(config).expect("a connection");
        let mut stream = BufReader::new(StreamOwned::new(connection, socket));
        // Ends with the connection, or with a client that does not trust it.
        while let Some((method, path, body)) = read_request(&mut stream) {
            let answer = self.answer(&method, &path, &body);
            let mut text = format!("HTTP/1.1 {}\r\nContent-Type: {}\r\n", answer.status, answer.kind);
            let length = answer.body.len();
            text.push_str(&format!("Content-Length: {length}\r\nReplay-Nonce: {}\r\n", self.nonce()));
            text.extend(answer.location.map(|url| format!("Location: {url}\r\n")));
            text.extend(answer.retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")));
            let body = if method == "HEAD" { "" } else { answer.body.as_str() };
            if stream.get_mut().write_all(format!("{text}\r\n{body}").as_bytes()).is_err() {
                return;
            }
        }
    }

    fn nonce(&self) -> String {
        let mut state = self.state();
        state.next += 1;
        let nonce = format!("nonce-{}", state.next);
        state.nonces.insert(nonce.clone());
        nonce
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let base = &self.base;
        match (method, path) {
            ("GET", "/directory") => Answer::json(
                "200 OK",
                &json!({
                    "newNonce": format!("{base}/nonce"),
                    "newAccount": format!("{base}/account"),
                    "newOrder": format!("{base}/order"),
                    "revokeCert": format!("{base}/revoke"),
                    "keyChange": format!("{base}/key"),
                    "meta": { "termsOfService": format!("{base}/terms") },
                }),
            ),
            ("HEAD", "/nonce") => Answer::json("200 OK", &Value::Null),
            ("POST", _) => match self.verified(path, body) {
                Ok((account, payload)) => self.act(path, &account, &payload),
                Err(answer) => answer,
            },
            _ => Answer::problem("404 Not Found", "malformed", "there is nothing here"),
        }
    }

    /// The account's URL ("" for a new one, which is made here) and the payload of a signed request.
    fn verified(&self, path: &str, body: &[u8]) -> Result<(String, Value), Answer> {
        let malformed = |what: &str| Answer::problem("400 Bad Request", "malformed", what);
        let body: Value = serde_json::from_slice(body).map_err(|_| malformed("no JSON"))?;
        let text = |key: &str| body[key].as_str().unwrap_or("").to_owned();
        let (protected, payload, signature) = (text("protected"), text("payload"), text("signature"));
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("no Base64"));
        let header: Value = serde_json::from_slice(&decoded(&protected)?).map_err(|_| malformed("no header"))?;
        if header["alg"] != "ES256" {
            return Err(Answer::problem("400 Bad Request", "badSignatureAlgorithm", "ES256 alone"));
        }
        if header["url"] != format!("{}{path}", self.base) {
            return Err(Answer::problem("401 Unauthorized", "unauthorized", "signed for another address"));
        }
        let known = self.state().nonces.remove(header["nonce"].as_str().unwrap_or(""));
        let unwanted = {
            let mut behaviour = self.behaviour.lock().expect("behaviour");
            let unwanted = behaviour.bad_nonces > 0;
            behaviour.bad_nonces = behaviour.bad_nonces.saturating_sub(1);
            unwanted
        };
        if !known || unwanted {
            self.state().refused_nonces += 1;
            return Err(Answer::problem("400 Bad Request", "badNonce", "take the new one"));
        }
        let jwk = &header["jwk"];
        let (key, thumbprint) = if path == "/account" {
            let part = |name: &str| decoded(jwk[name].as_str().unwrap_or(""));
            let key = [vec![4], part("x")?, part("y")?].concat();
            // RFC 7638: the members that are needed, in the order of their names.
            let (x, y) = (jwk["x"].as_str().unwrap_or(""), jwk["y"].as_str().unwrap_or(""));
            let canonical = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
            (key, URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes())))
        } else {
            let state = self.state();
            let account = header["kid"].as_str().and_then(|kid| state.accounts.get(kid));
            let account = account
                .filter(|_| jwk.is_null())
                .ok_or_else(|| Answer::problem("400 Bad Request", "accountDoesNotExist", "no such account here"))?;
            (account.key.clone(), account.thumbprint.clone())
        };
        let signed = format!("{protected}.{payload}");
        let verified =
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key).verify(signed.as_bytes(), &decoded(&signature)?);
        if verified.is_err() {
            return Err(Answer::problem("401 Unauthorized", "unauthorized", "the signature is wrong"));
        }
        let payload = decoded(&payload)?;
        let payload =
            if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap_or_default() };
        if path == "/account" {
            self.bound(&payload["externalAccountBinding"], jwk)?;
            if payload["termsOfServiceAgreed"] != true {
                return Err(Answer::problem("403 Forbidden", "userActionRequired", "agree to the terms"));
            }
            let mut state = self.state();
            state.accounts_made += 1;
            let url = format!("{}/account/{}", self.base, state.accounts_made);
            state.accounts.insert(url.clone(), Account { key, thumbprint });
            return Ok((url, payload));
        }
        Ok((header["kid"].as_str().unwrap_or("").to_owned(), payload))
    }

    /// Whether a new account with this key is bound to the one that is wanted (RFC 8555 7.3.4).
    fn bound(&self, binding: &Value, jwk: &Value) -> Result<(), Answer> {
        let Some((name, key)) = self.behaviour.lock().expect("behaviour").external.clone() else { return Ok(()) };
        let refused = |what: &str| Err(Answer::problem("403 Forbidden", "externalAccountRequired", what));
        let text = |part: &str| binding[part].as_str().unwrap_or("").to_owned();
        let json =
            |part: &str| URL_SAFE_NO_PAD.decode(text(part)).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let (Some(header), Some(payload)) = (json("protected"), json("payload")) else {
            return refused("an account of a customer is needed");
        };
        let (header, payload): (Value, Value) = (header, payload);
        let url = format!("{}/account", self.base);
        if header != json!({ "alg": "HS256", "kid": name, "url": url }) || payload != *jwk {
            return refused("the binding is not for this account");
        }
        let signed = format!("{}.{}", text("protected"), text("payload"));
        let signature = URL_SAFE_NO_PAD.decode(text("signature")).unwrap_or_default();
        match hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes(), &signature) {
            Ok(()) => Ok(()),
            Err(_) => refused("the binding is signed with another key"),
        }
    }

    fn act(&self, path: &str, account: &str, payload: &Value) -> Answer {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let number = |text: &str| text.parse::<usize>().unwrap_or(usize::MAX);
        match parts[..] {
            ["account"] => {
                let contact = payload["contact"].clone();
                Answer::json("201 Created", &json!({ "status": "valid", "contact": contact })).at(account.to_owned())
            }
            ["order"] => self.new_order(account, payload),
            ["order", order] => self.order("200 OK", number(order)),
            ["authorization", one] => self.authorization(number(one)),
            ["challenge", one, kind] => self.challenge(number(one), kind),
            ["finalize", order] => self.finalize(number(order), payload),
            ["certificate", order] => {
                let state = self.state();
                let certificate = state.orders.get(number(order)).map_or("", |order| &order.certificate);
                let body = format!("{certificate}{}", self.issuer_pem);
                Answer { kind: "application/pem-certificate-chain", body, ..Answer::json("200 OK", &Value::Null) }
            }
            _ => Answer::problem("404 Not Found", "malformed", "there is nothing here"),
        }
    }

    fn new_order(&self, account: &str, payload: &Value) -> Answer {
        if let Some(seconds) = self.behaviour.lock().expect("behaviour").limited.take() {
            let answer = Answer::problem("429 Too Many Requests", "rateLimited", "too many certificates this week");
            return Answer { retry_after: Some(seconds), ..answer };
        }
        let number = {
            let mut state = self.state();
            let thumbprint = state.accounts.get(account).map_or(String::new(), |one| one.thumbprint.clone());
            let mut authorizations = Vec::new();
            for identifier in payload["identifiers"].as_array().into_iter().flatten() {
                authorizations.push(state.authorizations.len());
                let name = identifier["value"].as_str().unwrap_or("").to_owned();
                let token = format!("token_{}-{name}", state.authorizations.len()).replace('.', "-");
                let thumbprint = thumbprint.clone();
                let authorization = Authorization { name, token, thumbprint, status: "pending", error: Value::Null };
                state.authorizations.push(authorization);
            }
            state.orders.push(Order { authorizations, certificate: String::new(), waited: false });
            state.orders.len() - 1
        };
        self.order("201 Created", number).at(format!("{}/order/{number}", self.base))
    }

    fn order(&self, status: &'static str, number: usize) -> Answer {
        let mut state = self.state();
        let state = &mut *state;
        let Some(order) = state.orders.get_mut(number) else {
            return Answer::problem("404 Not Found", "malformed", "no such order");
        };
        let all: Vec<&str> = order.authorizations.iter().map(|&one| state.authorizations[one].status).collect();
        let base = &self.base;
        let mut answer = json!({
            "authorizations": order.authorizations.iter().map(|one| format!("{base}/authorization/{one}")).collect::<Vec<_>>(),
            "identifiers": order.authorizations.iter().map(|&one| json!({ "type": "dns", "value": state.authorizations[one].name })).collect::<Vec<_>>(),
            "finalize": format!("{base}/finalize/{number}"),
        });
        answer["status"] = if all.contains(&"invalid") {
            "invalid".into()
        } else if !all.iter().all(|one| *one == "valid") {
            "pending".into()
        } else if order.certificate.is_empty() {
            "ready".into()
        } else if !std::mem::replace(&mut order.waited, true) {
            "processing".into()
        } else {
            answer["certificate"] = format!("{base}/certificate/{number}").into();
            "valid".into()
        };
        Answer::json(status, &answer)
    }

    fn challenges(&self, number: usize, authorization: &Authorization) -> Value {
        let of = |kind: &str| {
            let url = format!("{}/challenge/{number}/{kind}", self.base);
            let mut one =
                json!({ "type": kind, "url": url, "token": authorization.token, "status": authorization.status });
            if !authorization.error.is_null() {
                one["error"] = authorization.error.clone();
            }
            one
        };
        // One that nobody answers here comes first.
        json!([of("dns-01"), of("http-01"), of("tls-alpn-01")])
    }

    fn authorization(&self, number: usize) -> Answer {
        let state = self.state();
        let Some(authorization) = state.authorizations.get(number) else {
            return Answer::problem("404 Not Found", "malformed", "no such authorization");
        };
        let answer = json!({
            "identifier": { "type": "dns", "value": authorization.name },
            "status": authorization.status,
            "challenges": self.challenges(number, authorization),
        });
        Answer::json("200 OK", &answer)
    }

    fn challenge(&self, number: usize, kind: &str) -> Answer {
        let Some((name, token, thumbprint)) = ({
            let state = self.state();
            let one = state.authorizations.get(number);
            one.map(|one| (one.name.clone(), one.token.clone(), one.thumbprint.clone()))
        }) else {
            return Answer::problem("404 Not Found", "malformed", "no such challenge");
        };
        let expected = format!("{token}.{thumbprint}");
        let failing = {
            let mut behaviour = self.behaviour.lock().expect("behaviour");
            let failing = behaviour.failing_challenges > 0;
            behaviour.failing_challenges = behaviour.failing_challenges.saturating_sub(1);
            failing
        };
        let found = match kind {
            _ if failing => Err("Timeout during connect (likely firewall problem)".to_owned()),
            "http-01" => self.look_by_http(&name, &token, &expected),
            "tls-alpn-01" => self.look_by_alpn(&name, &expected),
            other => Err(format!("{other} is not looked at here")),
        };
        let mut state = self.state();
        let authorization = &mut state.authorizations[number];
        match found {
            Ok(()) => authorization.status = "valid",
            Err(why) => {
                authorization.status = "invalid";
                authorization.error = json!({ "type": "urn:ietf:params:acme:error:connection", "detail": why });
            }
        }
        let url = format!("{}/challenge/{number}/{kind}", self.base);
        Answer::json("200 OK", &json!({ "type": kind, "url": url, "token": token, "status": "processing" }))
    }

    /// RFC 8555 section 8.3.
    fn look_by_http(&self, name: &str, token: &str, expected: &str) -> Result<(), String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports.0)).map_err(|error| error.to_string())?;
        let head = format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\n\r\n");
        socket.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        if head.starts_with("HTTP/1.1 200 ") && body.trim_end() == expected {
            return Ok(());
        }
        Err(format!("found {body:?}"))
    }

    /// RFC 8737 section 3.
    fn look_by_alpn(&self, name: &str, expected: &str) -> Result<(), String> {
        let mut config = (*ringpost::io::tls::client_opportunistic().expect("TLS")).clone();
        config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
        let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
        let mut connection = ClientConnection::new(Arc::new(config), server).map_err(|error| error.to_string())?;
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports.1)).map_err(|error| error.to_string())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).map_err(|error| error.to_string())?;
        }
        if connection.alpn_protocol() != Some(b"acme-tls/1") {
            return Err("another protocol".into());
        }
        let shown = &connection.peer_certificates().ok_or("no certificate")?[0];
        let (_, certificate) = x509_parser::parse_x509_certificate(shown).map_err(|error| error.to_string())?;
        let names = certificate.subject_alternative_name().ok().flatten().ok_or("no names")?;
        let only = [x509_parser::extensions::GeneralName::DNSName(name)];
        let wanted = digest(&SHA256, expected.as_bytes());
        // id-pe-acmeIdentifier, an OCTET STRING of 32 octets.
        let marked = certificate.extensions().iter().any(|extension| {
            extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31"
                && extension.critical
                && extension.value == [&[4, 32], wanted.as_ref()].concat()
        });
        if names.value.general_names != only || !marked {
            return Err(format!("the certificate is not the one of the challenge: {:?}", names.value));
        }
        Ok(())
    }

    fn finalize(&self, number: usize, payload: &Value) -> Answer {
        let bad = |what: &str| Answer::problem("400 Bad Request", "badCSR", what);
        let Ok(request) = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap_or("")) else {
            return bad("no Base64");
        };
        // Verifies its signature, too.
        let Ok(mut request) = CertificateSigningRequestParams::from_der(&request.into()) else {
            return bad("no request");
        };
        let mut state = self.state();
        let state = &mut *state;
        let Some(order) = state.orders.get_mut(number) else { return bad("no such order") };
        let mut ordered: Vec<String> =
            order.authorizations.iter().map(|&one| state.authorizations[one].name.clone()).collect();
        let names = request.params.subject_alt_names.iter().map(|name| match name {
            SanType::DnsName(name) => name.to_string(),
            other => format!("{other:?}"),
        });
        let mut names: Vec<String> = names.collect();
        ordered.sort();
        names.sort();
        if names != ordered || order.authorizations.iter().any(|&one| state.authorizations[one].status != "valid") {
            return Answer::problem("403 Forbidden", "orderNotReady", "not these names, or not yet");
        }
        let (past, future) = self.behaviour.lock().expect("behaviour").life;
        let now = std::time::SystemTime::now();
        (request.params.not_before, request.params.not_after) = ((now - past).into(), (now + future).into());
        order.certificate = request.signed_by(&self.issuer).expect("a certificate").pem();
        self.order_of(number)
    }

    /// As [`order`](Shared::order), for one who holds the state.
    fn order_of(&self, number: usize) -> Answer {
        let base = &self.base;
        Answer::json(
            "200 OK",
            &json!({
                "status": "processing",
                "authorizations": [],
                "finalize": format!("{base}/finalize/{number}"),
            }),
        )
    }
}

/// Method, path and body; None at the end of the connection.
fn read_request(stream: &mut impl BufRead) -> Option<(String, String, Vec<u8>)> {
    let mut first = String::new();
    if stream.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let mut words = first.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned(), body))
}
