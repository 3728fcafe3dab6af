//! One SMTP connection as a client: the program's own protocol over a blocking socket.
//!
//! Blocks its thread, with a bound on each wait. Not for many thousands of connections.

use bytes::Bytes;
use ringpost::clock;
use ringpost::envelope::{Body, Notify};
use ringpost::smtp::client::{
    Client, ClientConfig, ClientEvent, OutgoingContent, OutgoingRecipient, RecipientOutcome, Transaction,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection that is ready for transactions.
pub struct Connection {
    stream: TcpStream,
    client: Client,
    start: Instant,
    input: Vec<u8>,
}

/// Why a connection is of no more use.
#[derive(Clone, Debug)]
pub struct Broken {
    /// In words.
    pub reason: String,
    /// The whole content had been sent: whether the server took the message is not known.
    pub in_doubt: bool,
}

impl Broken {
    fn new(reason: impl ToString) -> Broken {
        Broken { reason: reason.to_string(), in_doubt: false }
    }
}

/// What a server said to one transaction.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For each recipient, the outcome.
    pub outcomes: Vec<RecipientOutcome>,
    /// From the first octet of the envelope to the last outcome.
    pub duration: Duration,
}

impl Connection {
    /// Connects and greets. `patience` bounds each wait for the server.
    pub fn open(address: SocketAddr, config: Arc<ClientConfig>, patience: Duration) -> Result<Connection, Broken> {
        let stream = TcpStream::connect_timeout(&address, patience).map_err(Broken::new)?;
        stream.set_nodelay(true).map_err(Broken::new)?;
        stream.set_read_timeout(Some(patience)).map_err(Broken::new)?;
        stream.set_write_timeout(Some(patience)).map_err(Broken::new)?;
        let start = Instant::now();
        let client = Client::new(config, clock::Instant::ZERO);
        let mut connection = Connection { stream, client, start, input: vec![0; 4096] };
        while !connection.client.is_idle() {
            match connection.next_event()? {
                Some(ClientEvent::Ready) => break,
                _ => connection.exchange()?,
            }
        }
        Ok(connection)
    }

    /// Sends a message and waits for its outcomes.
    pub fn send(&mut self, reverse_path: &str, recipients: &[String], content: Bytes) -> Result<Answer, Broken> {
        let recipients: Vec<OutgoingRecipient> = recipients
            .iter()
            .map(|address| OutgoingRecipient { address: address.as_str().into(), notify: Notify::DEFAULT, orcpt: None })
            .collect();
        let mut outcomes: Vec<Option<RecipientOutcome>> = vec![None; recipients.len()];
        let transaction = Transaction {
            reverse_path: Some(reverse_path.into()),
            recipients,
            body: Body::SevenBit,
            smtputf8: false,
            require_tls: false,
            ret: None,
            envid: None,
            content_len: content.len() as u64,
            content: OutgoingContent::Whole(vec![content]),
        };
        let begun = Instant::now();
        self.client.begin(transaction, self.now());
        loop {
            match self.next_event()? {
                Some(ClientEvent::Recipient { index, outcome }) => outcomes[index] = Some(outcome),
                Some(ClientEvent::Ready) => break,
                Some(_) => {}
                None => self.exchange()?,
            }
        }
        let duration = begun.elapsed();
        let outcomes: Option<Vec<RecipientOutcome>> = outcomes.into_iter().collect();
        let outcomes = outcomes.ok_or_else(|| Broken::new("the transaction ended without all outcomes"))?;
        Ok(Answer { outcomes, duration })
    }

    /// Says goodbye and closes.
    pub fn quit(mut self) {
        self.client.quit(self.now());
        while let Ok(event) = self.next_event() {
            if matches!(event, Some(ClientEvent::Closed)) || self.exchange().is_err() {
                break;
            }
        }
    }

    /// Another handle of the socket, by which another thread can break it off.
    pub fn breaker(&self) -> std::io::Result<Breaker> {
        Ok(Breaker(self.stream.try_clone()?))
    }

    fn now(&self) -> clock::Instant {
        clock::Instant::ZERO.after(self.start.elapsed())
    }

    /// Writes what there is to write and takes the next event.
    fn next_event(&mut self) -> Result<Option<ClientEvent>, Broken> {
        while let Some(bytes) = self.client.poll_transmit() {
            if let Err(error) = self.stream.write_all(&bytes) {
                self.client.handle_closed(&error.to_string(), self.now());
            }
        }
        match self.client.poll_event() {
            Some(ClientEvent::Failed(failure)) => {
                Err(Broken { reason: failure.to_string(), in_doubt: failure.after_final_dot })
            }
            event => Ok(event),
        }
    }

    /// Waits for the server to say something, or to fall silent for good.
    fn exchange(&mut self) -> Result<(), Broken> {
        match self.stream.read(&mut self.input) {
            Ok(0) => self.client.handle_closed("the server closed it", self.now()),
            Ok(read) => self.client.handle_input(&self.input[..read], self.now()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => self.client.handle_closed(&error.to_string(), self.now()),
        }
        Ok(())
    }
}

/// Breaks a connection off from outside its thread.
pub struct Breaker(TcpStream);

impl Breaker {
    /// Ends the connection; whoever waits on it is told at once.
    pub fn break_off(&self) {
        // A connection that is over already needs no breaking off.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
