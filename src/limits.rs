//! Every bound of the program as a named constant: its unit, why it is what it is, and how it relates to the others
//! (asserted when compiling). A bound that an operator may change has its default in src/config.rs instead.
//!
//! What happens when a bound is reached is told where the bound is used.

// ---- address ----

/// Octets of a local part (RFC 5321 4.5.3.1.1).
pub const LOCAL_PART_OCTETS_MAX: usize = 64;
/// Octets of a domain (RFC 5321 4.5.3.1.2).
pub const DOMAIN_OCTETS_MAX: usize = 255;
/// Octets of a whole address: a path has at most 256 with its angle brackets (RFC 5321 4.5.3.1.3).
pub const ADDRESS_OCTETS_MAX: usize = 254;
/// Octets of one label of a domain name (RFC 1035 2.3.4).
pub const LABEL_OCTETS_MAX: usize = 63;
/// Octets of a domain name in A-labels without the final dot (RFC 1035 2.3.4, whose 255 counts length octets and root).
pub const DOMAIN_NAME_OCTETS_MAX: usize = 253;

const _: () = assert!(ADDRESS_OCTETS_MAX <= u8::MAX as usize, "an address keeps the place of its @ in one octet");
const _: () = assert!(DOMAIN_NAME_OCTETS_MAX <= DOMAIN_OCTETS_MAX);

// ---- reply ----

/// Octets of a reply line that we write, with code and CRLF (RFC 5321 4.5.3.1.5). Longer texts go on in a further line.
pub const REPLY_LINE_OCTETS_MAX: usize = 512;
/// Octets kept of one line that a peer replies; the rest of the line is skipped. Twice what RFC 5321 allows, because
/// peers put links and ids into their refusals and people want to read them.
pub const PEER_REPLY_LINE_OCTETS_MAX: usize = 1000;
/// Lines in one reply of a peer. EHLO replies of large providers have about 20.
pub const PEER_REPLY_LINES_MAX: usize = 64;
/// Octets kept of the text of one reply of a peer; what is more is dropped.
pub const PEER_REPLY_OCTETS_MAX: usize = 8 * 1024;

const _: () = assert!(PEER_REPLY_LINE_OCTETS_MAX >= REPLY_LINE_OCTETS_MAX, "our own replies are read whole");
const _: () = assert!(PEER_REPLY_LINE_OCTETS_MAX <= PEER_REPLY_OCTETS_MAX);

// ---- smtp: lines and parameters ----

/// Octets of a command line with CRLF and without parameters of extensions (RFC 5321 4.5.3.1.4).
pub const COMMAND_LINE_OCTETS_MAX: usize = 512;
/// Octets that the parameters of MAIL add: SIZE 26 (RFC 1870 3), BODY 17 (RFC 6152 2), SMTPUTF8 10 (RFC 6531 3.1),
/// RET and ENVID 120 (RFC 3461 4.3, 4.4), with room for spaces.
pub const MAIL_PARAMETERS_OCTETS_MAX: usize = 192;
/// Octets that the parameters of RCPT add: NOTIFY 29 and ORCPT 507 (RFC 3461 4.1, 4.2), with room for spaces.
pub const RCPT_PARAMETERS_OCTETS_MAX: usize = 560;
/// Octets of the longest command line of all: more than this is never held for a line that is not complete.
pub const ANY_COMMAND_LINE_OCTETS_MAX: usize = COMMAND_LINE_OCTETS_MAX + RCPT_PARAMETERS_OCTETS_MAX;
/// Characters of an ENVID value (RFC 3461 4.4).
pub const ENVID_OCTETS_MAX: usize = 100;
/// Characters of an ORCPT value (RFC 3461 4.2).
pub const ORCPT_OCTETS_MAX: usize = 500;
/// Octets of the name a client gives with HELO or EHLO: as long as a domain.
pub const HELLO_NAME_OCTETS_MAX: usize = DOMAIN_OCTETS_MAX;

const _: () = assert!(MAIL_PARAMETERS_OCTETS_MAX <= RCPT_PARAMETERS_OCTETS_MAX);
const _: () = assert!(ADDRESS_OCTETS_MAX + "MAIL FROM:<>\r\n".len() <= COMMAND_LINE_OCTETS_MAX);
const _: () = assert!(ENVID_OCTETS_MAX < MAIL_PARAMETERS_OCTETS_MAX && ORCPT_OCTETS_MAX < RCPT_PARAMETERS_OCTETS_MAX);

// ---- smtp: PROXY protocol ----

/// Octets of a version 1 header with CRLF (the longest one that the protocol's text allows).
pub const PROXY_V1_OCTETS_MAX: usize = 107;
/// Octets that may follow the fixed part of a version 2 header: addresses and type-length-values. Real ones have less
/// than 200; a header that announces more is refused.
pub const PROXY_V2_BODY_OCTETS_MAX: usize = 2048;

// ---- smtp: client ----

/// Octets of a streamed content asked of the owner at a time. One such piece is being written to the socket while
/// the next is being read, so a delivery holds two of them.
pub const CLIENT_CONTENT_PIECE_OCTETS_MAX: usize = 64 * 1024;

/// Chunks (BDAT) of a streamed content that may be under way without a reply, where the peer offers PIPELINING.
/// With pieces of 64 KiB, half a megabyte: enough for a long, fast line.
pub const CLIENT_CHUNKS_UNANSWERED_MAX: u32 = 8;

/// Octets kept of the name a peer gives in its greeting: as long as a domain can be (RFC 5321 4.5.3.1.2).
pub const PEER_NAME_OCTETS_MAX: usize = 255;

// ---- policy: trace ----

/// Octets of a name (HELO, this host) in a Received header: as long as a domain can be (RFC 5321 4.5.3.1.2).
pub const TRACE_NAME_OCTETS_MAX: usize = 255;

/// Octets of a content in which headers are looked for: far above any honest header section, and cheap to scan.
pub const HEADER_SCAN_OCTETS_MAX: usize = 256 * 1024;

// ---- queue: reports ----

/// Octets of a message that is returned whole with the report of its failure; of a greater one, only its headers.
pub const DSN_RETURNED_OCTETS_MAX: usize = 64 * 1024;
/// Octets of headers returned with a report; more are cut at a line's end.
pub const DSN_RETURNED_HEADERS_OCTETS_MAX: usize = 32 * 1024;
/// Octets of a peer's reply that stand in a report, twice (for people and for programs) for each recipient.
pub const DSN_DIAGNOSTIC_OCTETS_MAX: usize = 2 * 1024;
