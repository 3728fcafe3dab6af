//! One connection of a destination: understands what ringpost's client sends, and answers.

/// The peer.
pub struct Destination {
    willing: bool,
    chunking: bool,
    input: Vec<u8>,
    in_data: bool,
    /// Octets of a chunk that are to come.
    chunk: usize,
    recipients: u64,
    replies: Vec<u8>,
}

impl Destination {
    /// One that takes mail if it is `willing`, and else defers every recipient.
    pub fn new(willing: bool, chunking: bool) -> Destination {
        Destination {
            willing,
            chunking,
            input: Vec::new(),
            in_data: false,
            chunk: 0,
            recipients: 0,
            replies: b"220 mx.test ESMTP\r\n".to_vec(),
        }
    }

    /// Takes what was sent; returns how many recipients were delivered to and how many deferred by it.
    pub fn handle_input(&mut self, input: &[u8]) -> (u64, u64) {
        self.input.extend_from_slice(input);
        let (mut delivered, mut deferred) = (0, 0);
        loop {
            if self.chunk > 0 {
                if self.input.len() < self.chunk {
                    break;
                }
                self.input.drain(..self.chunk);
                self.chunk = 0;
                delivered += self.end();
                continue;
            }
            let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") else { break };
            let line: Vec<u8> = self.input.drain(..end + 2).collect();
            if self.in_data {
                if line == b".\r\n" {
                    self.in_data = false;
                    delivered += self.end();
                }
                continue;
            }
            let line = String::from_utf8(line).expect("commands are ASCII");
            let reply = match line.split([' ', '\r']).next().unwrap_or_default() {
                "EHLO" if self.chunking => "250-mx.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 8BITMIME\r\n",
                "EHLO" => "250-mx.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
                "RCPT" if self.willing => {
                    self.recipients += 1;
                    "250 2.1.5 OK\r\n"
                }
                "RCPT" => {
                    deferred += 1;
                    "450 4.2.1 Try again later\r\n"
                }
                "DATA" if self.recipients == 0 => "503 5.5.1 No recipients\r\n",
                "DATA" => {
                    self.in_data = true;
                    "354 Go on\r\n"
                }
                "BDAT" => {
                    let octets = line.split_ascii_whitespace().nth(1).and_then(|octets| octets.parse().ok());
                    self.chunk = octets.expect("BDAT has a length");
                    ""
                }
                "MAIL" | "RSET" => "250 2.1.0 OK\r\n",
                other => panic!("{other}"),
            };
            self.replies.extend_from_slice(reply.as_bytes());
        }
        (delivered, deferred)
    }

    /// The content is complete.
    fn end(&mut self) -> u64 {
        let recipients = std::mem::take(&mut self.recipients);
        let reply: &[u8] = if recipients > 0 { b"250 2.0.0 OK: queued as 4hB7Tz3k\r\n" } else { b"503 5.5.1 No\r\n" };
        self.replies.extend_from_slice(reply);
        recipients
    }

    /// What it says next.
    pub fn poll_reply(&mut self) -> Option<Vec<u8>> {
        if self.replies.is_empty() { None } else { Some(std::mem::take(&mut self.replies)) }
    }
}
