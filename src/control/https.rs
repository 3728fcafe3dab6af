//! Questions by HTTPS to issuers of tokens: bounded in time and size, on the control thread's runtime.
//!
//! Not here: what is asked. Redirections are not followed; whatever is not 200 is an error.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// How long a question may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {what}")]
pub struct HttpsError {
    url: String,
    what: String,
}

/// A client of HTTPS, and of HTTP where the configuration allows it (src/config/check.rs).
#[derive(Clone)]
pub struct Https {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Https {
    /// With this connector.
    pub fn new(tls: &crate::io::tls::ClientTls) -> Https {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config((**tls).clone()).https_or_http().enable_http1().build();
        Https { client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// What is there.
    ///
    /// # Errors
    /// When it cannot be had in time, or is longer than `most` octets.
    pub async fn get(&self, url: &str, most: usize) -> Result<Vec<u8>, HttpsError> {
        let request = Request::get(url).header(header::ACCEPT, "application/json").body(Full::default());
        self.ask(url, request, most).await
    }

    /// The answer to a form.
    ///
    /// # Errors
    /// When it cannot be had in time, or is longer than `most` octets.
    pub async fn post_form(
        &self,
        url: &str,
        authorization: &str,
        body: String,
        most: usize,
    ) -> Result<Vec<u8>, HttpsError> {
        let request = Request::post(url)
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(Full::from(body));
        self.ask(url, request, most).await
    }

    async fn ask(
        &self,
        url: &str,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
        most: usize,
    ) -> Result<Vec<u8>, HttpsError> {
        let wrong = |what: String| HttpsError { url: url.into(), what };
        let request = request.map_err(|error| wrong(error.to_string()))?;
        let answered = async {
            let answer = self.client.request(request).await.map_err(|error| wrong(error.to_string()))?;
            if answer.status() != StatusCode::OK {
                return Err(wrong(format!("answered {}", answer.status())));
            }
            let body = Limited::new(answer.into_body(), most).collect().await;
            body.map(|body| body.to_bytes().to_vec()).map_err(|error| wrong(error.to_string()))
        };
        match tokio::time::timeout(TIME_MAX, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(wrong(format!("no answer in {} s", TIME_MAX.as_secs()))),
        }
    }
}
