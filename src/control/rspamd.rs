//! A client of rspamd's HTTP interface (POST /checkv2, https://docs.rspamd.com/developers/protocol/).
//!
//! Its actions: `reject` refuses the message, `soft reject` puts it off, `add header` and `rewrite subject` mark it with
//! `X-Spam: Yes`, `quarantine` holds it, `discard` refuses it (nothing that was accepted may vanish); `greylist` and `no action`
//! let it in, since the greylisting module asks for a soft reject where it wants one. Headers that it wants added are added,
//! those that it wants removed stay.

use super::filter_content::Content;
use super::filters::{Answer, FilterError, rejection};
use crate::io::tls::ClientTls;
use crate::limits::FILTER_ANSWER_MAX;
use crate::reply::Reply;
use crate::shard::message::FilterQuestion;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;

type Pieces = Pin<Box<dyn futures_lite::Stream<Item = io::Result<Frame<Bytes>>> + Send>>;

/// Asks one rspamd.
pub struct Rspamd {
    url: String,
    password: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, StreamBody<Pieces>>,
}

#[derive(Debug, Deserialize)]
struct Checked {
    action: String,
    #[serde(default)]
    score: f64,
    #[serde(default)]
    required_score: f64,
    #[serde(default)]
    messages: HashMap<String, Value>,
    #[serde(default)]
    milter: Milter,
}

#[derive(Debug, Default, Deserialize)]
struct Milter {
    #[serde(default)]
    add_headers: Map<String, Value>,
}

impl Rspamd {
    /// At this address, as in `http://127.0.0.1:11333`.
    pub fn new(url: &str, password: Option<HeaderValue>, tls: &ClientTls) -> Rspamd {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config((**tls).clone()).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Rspamd { url: format!("{}/checkv2", url.trim_end_matches('/')), password, client }
    }

    /// What it says of a message.
    ///
    /// # Errors
    /// When it cannot be asked, or answers what cannot be understood.
    pub async fn ask(
        &self,
        hostname: &str,
        question: &FilterQuestion,
        content: &Content,
    ) -> Result<Answer, FilterError> {
        let mut request = Request::post(&self.url).header(CONTENT_LENGTH, content.len());
        let id = question.id.to_string();
        let address = question.client.ip().to_canonical().to_string();
        let single = [
            ("ip", Some(&*address)),
            ("helo", Some(&*question.helo)),
            ("from", Some(&*question.sender)),
            ("queue-id", Some(&*id)),
            ("mta-name", Some(hostname)),
            ("user", question.login.as_deref()),
            ("tls-version", question.tls.map(|(version, _)| version)),
            ("tls-cipher", question.tls.map(|(_, cipher)| cipher)),
        ];
        let recipients = question.recipients.iter().map(|recipient| ("rcpt", Some(&**recipient)));
        for (name, text) in single.into_iter().chain(recipients) {
            // What cannot stand in a header, such as a control character, is not told.
            if let Some(value) = text.and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok()) {
                request = request.header(HeaderName::from_static(name), value);
            }
        }
        if let Some(password) = &self.password {
            request = request.header(HeaderName::from_static("password"), password);
        }
        let request = request.body(StreamBody::new(pieces(content.clone()))).map_err(FilterError::http)?;
        let answer = self.client.request(request).await.map_err(FilterError::http)?;
        if answer.status() != StatusCode::OK {
            return Err(FilterError::protocol(format!("it answers {}", answer.status())));
        }
        let body = Limited::new(answer.into_body(), FILTER_ANSWER_MAX).collect().await;
        let body = body.map_err(|error| FilterError::protocol(error.to_string()))?.to_bytes();
        let checked = serde_json::from_slice(&body);
        Ok(verdict(checked.map_err(|error| FilterError::protocol(format!("its answer cannot be read: {error}")))?))
    }
}

fn pieces(content: Content) -> Pieces {
    Box::pin(futures_lite::stream::unfold((content, 0), |(content, at)| async move {
        match content.piece(at).await {
            Ok(piece) if piece.is_empty() => None,
            Ok(piece) => {
                let next = (content, at + piece.len() as u64);
                Some((Ok(Frame::data(piece)), next))
            }
            // Behind an error nothing is asked for any more.
            Err(error) => Some((Err(error), (content, u64::MAX))),
        }
    }))
}

fn verdict(checked: Checked) -> Answer {
    let mut answer = Answer::default();
    let score = format!("score {:.2} of {:.2}", checked.score, checked.required_score);
    let said = checked.messages.get("smtp_message").and_then(Value::as_str);
    match checked.action.as_str() {
        "reject" | "discard" => answer.refusal = Some(rejection(said)),
        "soft reject" => {
            let said = rejection(Some(said.unwrap_or("Try again later")));
            answer.refusal =
                Some(Reply { code: 451, enhanced: Some(crate::reply::EnhancedCode::new(4, 7, 1)), ..said });
        }
        "quarantine" => answer.hold = Some(score),
        "add header" | "rewrite subject" => answer.headers.push(("X-Spam".into(), "Yes".into())),
        _ => {}
    }
    for (name, value) in &checked.milter.add_headers {
        for value in values(value) {
            answer.headers.push((name.clone(), value.to_owned()));
        }
    }
    answer
}

/// A header to add is a text, an object with one, or a list of such.
fn values(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Object(object) => object.get("value").and_then(Value::as_str).into_iter().collect(),
        Value::Array(list) => list.iter().flat_map(values).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(json: &str) -> Answer {
        verdict(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn each_action_has_its_consequence() {
        let reply = |json| judged(json).refusal.map(|reply| reply.to_string());
        assert_eq!(
            reply(r#"{"action":"reject","messages":{"smtp_message":"Gtube pattern"}}"#).unwrap(),
            "554 5.7.1 Gtube pattern"
        );
        assert!(reply(r#"{"action":"discard"}"#).unwrap().starts_with("554 5.7.1"));
        assert_eq!(reply(r#"{"action":"soft reject"}"#).unwrap(), "451 4.7.1 Try again later");
        assert_eq!(reply(r#"{"action":"greylist"}"#), None);
        let held = judged(r#"{"action":"quarantine","score":16.5,"required_score":15}"#);
        assert_eq!(held.hold.as_deref(), Some("score 16.50 of 15.00"));
        assert_eq!(judged(r#"{"action":"no action"}"#), Answer::default());
    }

    #[test]
    fn headers_are_added_in_each_form() {
        let answer = judged(
            r#"{"action":"add header","milter":{"add_headers":
            {"X-A":"1","X-B":{"value":"2","order":0},"X-C":[{"value":"3"},"4"]},"remove_headers":{"X-D":0}}}"#,
        );
        let headers: Vec<(&str, &str)> = answer.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, [("X-Spam", "Yes"), ("X-A", "1"), ("X-B", "2"), ("X-C", "3"), ("X-C", "4")]);
    }
}
