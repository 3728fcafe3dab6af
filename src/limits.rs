//! Every bound of the program as a named constant: its unit, why it is what it is, and how it relates to the others
//! (asserted when compiling). A bound that an operator may change has its default in src/config.rs instead.
//!
//! What happens when a bound is reached is told where the bound is used.

use std::time::Duration;

// ---- shard ----

/// Shards of one process, at most: a shard's number is one octet and names its log.
pub const MAX_SHARDS: usize = 256;
/// Sites of one process. Each takes about 300 octets in each shard that sends there.
pub const MAX_SITES: usize = 1_000_000;
/// Domains whose routes a shard remembers.
pub const MAX_CACHED_DOMAINS: usize = 200_000;
/// Tenants whose mail is kept apart: a tenant's number has 16 bits.
pub const MAX_TENANTS: usize = 60_000;
/// How long "too many sites" is believed.
pub const NEGATIVE_DNS_TTL: Duration = Duration::from_secs(60);
/// A question to DNS that was not answered by then is asked again.
pub const RESOLVE_AGAIN: Duration = Duration::from_secs(15);
/// How long a host is left alone after its first failure; doubles with each further one.
pub const HOST_BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// The longest time a host is left alone.
pub const HOST_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long opportunistic connections do without TLS where it broke.
pub const NO_TLS_MEMORY: Duration = Duration::from_secs(3600);
/// Octets that a message's content starts with in memory: most small messages need no second allocation.
pub const INLINE_CONTENT_START: usize = 2048;
/// Octets of one write of content that goes to its own file: a multiple of the disk's block.
pub const SPILL_CHUNK: usize = 256 * 1024;
/// Such writes of one message that may be under way before its client has to wait.
pub const SPILL_PIECES_MAX: usize = 4;
/// Octets of the largest content that a record can describe.
pub const MAX_SPILLED_CONTENT: u64 = u32::MAX as u64 - 4096;
/// How long a shard signs in one turn, about, in microseconds: three messages with RSA.
pub const SIGN_SLICE_US: u32 = 900;
/// Octets of content that are hashed in a microsecond, about.
pub const SIGN_OCTETS_PER_US: u32 = 500;
/// Leases that a shard may have with each other shard.
pub const LEASES_PER_SHARD: u32 = 64;
/// Messages that a shard's mailbox holds: leases and answers of every other shard, and the control thread's.
pub const MAILBOX_CAPACITY: usize = 64 * 1024;
/// Of these, how many the control thread may use.
pub const MAILBOX_FOR_CONTROL: usize = 4096;
/// Places in a shard's mailbox for hints of other shards that may be lost (a permit is free, or wanted).
pub const MAILBOX_FOR_HINTS: usize = 1024;
/// Reports of all shards that wait for the control thread: a pause of its own of some 100 ms under full load.
pub const CONTROL_INBOX: usize = 16 * 1024;
/// A shard with fewer ready messages than this needs no help.
pub const HELP_ABOVE: u32 = 512;
/// Ready recipients of a site that is down, looked at for expiry in one sweep.
pub const EXPIRY_SWEEP: usize = 64;
/// Octets of peer and reply kept with an outcome.
pub const DETAILS_MAX: usize = 512;
/// Octets of a message read for a report on it.
pub const DSN_HEAD: u32 = 64 * 1024;
/// Octets that the record of a report takes besides its content.
pub const DSN_ROOM: usize = 8 * 1024;
/// Messages in one page of an operator's list.
pub const ADMIN_PAGE_MAX: usize = 1000;
/// Messages that a shard looks at for one operator's request, so that no request holds up the mail.
pub const ADMIN_BUDGET: usize = 4000;
/// Reports for the control thread kept while its mailbox is full.
pub const MAX_QUEUED_REPORTS: usize = 1024;
/// Ticks between the slow housekeeping: a second.
pub const SLOW_TICKS: u64 = 50;
/// How often, in ticks, the log is told of lines that are missing from it; a multiple of [`SLOW_TICKS`].
pub const DROPS_TOLD_EVERY: u64 = 10 * SLOW_TICKS;
/// A tick looks at one in so many connections: each is seen once a second.
pub const SWEEP_SHARE: usize = 50;
/// How long a start waits for the spool's first segment before it counts as done all the same.
pub const FIRST_SEGMENT_TIME: Duration = Duration::from_secs(5);
/// How long a connection without work is kept although another shard waits for one: longer than the pause between two
/// messages under load, shorter than anybody notices.
pub const IDLE_YIELD: Duration = Duration::from_millis(50);
/// How long a peer may take to answer to commands behind a content, once it has answered to the content.
pub const CLIENT_AHEAD_TIME: Duration = Duration::from_secs(30);
/// So many messages a host must have taken on ordinary terms before commands behind a content are tried there.
pub const AHEAD_TRIAL: u8 = 8;
/// After a site's limits were cut, or raised, what came of messages under way before says nothing for so long.
pub const ADAPT_CUT_AGAIN: Duration = Duration::from_secs(10);
/// Limits are raised by one step in this time.
pub const ADAPT_RAISE_EVERY: Duration = Duration::from_secs(10);
/// And not before a provider has not complained for so long.
pub const ADAPT_QUIET: Duration = Duration::from_secs(30);
/// However much a provider complains, one message goes in this time.
pub const ADAPT_STEP_MAX: Duration = Duration::from_secs(60);
/// Providers, domains and limits of shaping files together: each site is compared with all once.
pub const SHAPING_ENTRIES_MAX: usize = 10_000;
/// So many messages a site's only connection carries while other sites wait for room.
pub const ROOM_SHARE: u32 = 50;
/// How long a PROXY header or a TLS handshake may take to come.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop waits for transactions under way.
pub const DRAIN_TIME: Duration = Duration::from_secs(20);
/// How long a shard stays once every shard stops: mailboxes are emptied in each turn, so that what was lent before has
/// come out by then.
pub const STOP_LINGER: Duration = Duration::from_millis(100);

const _: () = assert!(SPILL_CHUNK.is_multiple_of(4096));
const _: () = assert!(
    2 * LEASES_PER_SHARD as usize * (MAX_SHARDS - 1) + MAILBOX_FOR_CONTROL + MAILBOX_FOR_HINTS <= MAILBOX_CAPACITY,
    "a mailbox has room for all leases and answers, so that shards cannot lock each other up"
);

// ---- TLS ----

/// Names that are taken from a client's certificate; what it names beyond them is not heard.
pub const CLIENT_NAMES_MAX: usize = 16;
/// Names of a server's certificate; authorities put at most a hundred into one.
pub const SERVER_NAMES_MAX: usize = 1000;
/// Certificates that listeners choose from.
pub const CERTIFICATES_MAX: usize = 1000;
/// Names of a certificate that is ordered by ACME, at most: what public authorities take.
pub const ACME_NAMES_MAX: usize = 100;
/// Connections to one port for challenges of ACME at a time; a further one ends the oldest.
pub const CHALLENGE_CONNECTIONS_MAX: usize = 64;
/// Octets of an answer of an ACME server: a chain of certificates takes some thousand.
pub const ACME_ANSWER_OCTETS_MAX: usize = 256 * 1024;
/// The whole of finding a policy of MTA-STS: record, server, policy.
pub const STS_TIME_MAX: Duration = Duration::from_secs(12);
const _: () = assert!(STS_TIME_MAX.as_millis() < RESOLVE_AGAIN.as_millis(), "a shard does not ask again meanwhile");
/// How long a server of policies that gave none is left alone (RFC 8461 3.3: at least five minutes).
pub const STS_RETRY: Duration = Duration::from_secs(300);
/// At this age a policy is fetched anew, while it holds on (RFC 8461 10.2).
pub const STS_REFRESH: Duration = Duration::from_secs(24 * 3600);
/// Octets of a policy (RFC 8461 3.3 suggests 64 kilobytes).
pub const STS_POLICY_OCTETS_MAX: usize = 64 * 1024;
/// Domains whose policies are kept.
pub const STS_DOMAINS_MAX: usize = 50_000;
/// How long it is believed that a domain's policy names none of its hosts.
pub const UNMET_POLICY_TTL: Duration = Duration::from_secs(300);
/// Octets of a file with logins and passwords.
pub const CREDENTIAL_FILE_OCTETS_MAX: usize = 1 << 20;
/// Octets of a file with one secret: a password, or a key as text.
pub const SECRET_FILE_OCTETS_MAX: usize = 4096;
/// Octets that are read of a file with certificates: those of all authorities that a system trusts take a quarter.
pub const CERTIFICATE_FILE_OCTETS_MAX: u64 = 1 << 20;

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
/// Octets of replies made from one piece of input, about; what is left of the input waits until they are sent. A reply
/// can be thirty times as long as its command, and a client may never read.
pub const SESSION_REPLIES_OCTETS_MAX: usize = 16 * 1024;
/// Octets of the longest command line of all: more than this is never held for a line that is not complete. A password of
/// [`LOGIN_OCTETS_MAX`] fits in base64.
pub const ANY_COMMAND_LINE_OCTETS_MAX: usize = 1152;
/// Octets of the longest AUTH command, and of an answer within its exchange (RFC 4954 4), where clients may log in.
pub const AUTH_LINE_OCTETS_MAX: usize = 12_288;
/// Octets of a bearer's token.
pub const TOKEN_OCTETS_MAX: usize = 8192;
/// Octets of the client's part of a nonce of SCRAM.
pub const SCRAM_NONCE_OCTETS_MAX: usize = 128;
/// Octets of a login name and of a password.
pub const LOGIN_OCTETS_MAX: usize = 255;
/// Failed logins of one session; the last ends it.
pub const AUTH_FAILURES_MAX: u8 = 3;
/// How long a shard remembers a login that was good.
pub const LOGIN_REMEMBERED: Duration = Duration::from_secs(3600);
/// Logins that a shard remembers.
pub const LOGINS_REMEMBERED_MAX: usize = 10_000;
/// The delay of the answer to a first failed login; it doubles with each further one.
pub const LOGIN_DELAY_FIRST: Duration = Duration::from_millis(500);
/// The longest such delay.
pub const LOGIN_DELAY_MAX: Duration = Duration::from_secs(8);
/// Failures after which an account is locked.
pub const LOCKOUT_ACCOUNT_FAILURES: u32 = 10;
/// Failures after which a network is locked.
pub const LOCKOUT_NETWORK_FAILURES: u32 = 30;
/// How long failures count, and a lock lasts beyond the last of them.
pub const LOCKOUT_TIME: Duration = Duration::from_secs(600);
/// Accounts and networks whose failures are known.
pub const LOCKOUT_ENTRIES_MAX: usize = 20_000;
/// Logins that wait for their password hash, beyond which others are told to try again; and failures held back, beyond which
/// others are told at once.
pub const LOGINS_WAITING_MAX: usize = 512;
/// How long a session waits for the decision about a login, in which a failed one is also delayed.
pub const AUTH_TIMEOUT: Duration = Duration::from_secs(60);

const _: () = assert!(COMMAND_LINE_OCTETS_MAX + RCPT_PARAMETERS_OCTETS_MAX <= ANY_COMMAND_LINE_OCTETS_MAX);
const _: () =
    assert!((3 * LOGIN_OCTETS_MAX + 2).div_ceil(3) * 4 + "AUTH PLAIN \r\n".len() <= ANY_COMMAND_LINE_OCTETS_MAX);
const _: () = assert!(
    (TOKEN_OCTETS_MAX + LOGIN_OCTETS_MAX + 512).div_ceil(3) * 4 + "AUTH OAUTHBEARER \r\n".len() <= AUTH_LINE_OCTETS_MAX,
    "the longest token comes whole, with name, host and port"
);
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

// ---- queue ----

/// Recipients of one message, at most, in the queue: their places are 16-bit numbers and the last is "none".
pub const QUEUE_RECIPIENTS_MAX: usize = u16::MAX as usize - 1;
/// No retry comes sooner, whatever the schedule says: a schedule of zero must not spin.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// A peer that names a time before which it wants no retry is obeyed up to here: longer would be a way to make
/// mail expire.
pub const RETRY_NOT_BEFORE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Due times from here on are rounded up to whole seconds, so that recipients of one message that failed one after
/// the other in one transaction come back together.
pub const RETRY_ROUNDING_FROM: Duration = Duration::from_secs(60);
/// Octets a tenant may send to a site per turn while others wait: a few small messages, so that turns are short.
pub const FAIRNESS_QUANTUM: u64 = 32 * 1024;
/// What a transaction costs in octets besides its content: its round trips hold a connection about as long.
pub const TRANSACTION_COST: u64 = 4 * 1024;
/// Messages whose timers are handled in one call, at most, so that a shard is not held up when very many fall due
/// at once; the rest follow in the next turn.
pub const TIMEOUT_BATCH: usize = 1024;
/// While the whole queue is on hold, delay warnings are looked at again after this long.
pub const WARNING_RECHECK: Duration = Duration::from_secs(15 * 60);

const _: () = assert!(TRANSACTION_COST < FAIRNESS_QUANTUM);
const _: () = assert!(RETRY_WAIT_MIN.as_millis() < RETRY_ROUNDING_FROM.as_millis());

// ---- policy ----

/// IPv6 clients are counted by their network of this length: an end site holds at least so much (RFC 6177).
pub const CLIENT_IPV6_PREFIX: u8 = 64;
/// A network of IPv4 clients has this length: the smallest that is announced to others.
pub const NETWORK_IPV4_PREFIX: u8 = 24;
/// A network of IPv6 clients has this length: the largest that a site is usually given (RFC 6177), so that nobody is many
/// networks.
pub const NETWORK_IPV6_PREFIX: u8 = 48;
/// Clients, and as many networks, whose connections of late are known, over all shards: 8 octets each.
pub const CONNECTION_RATE_PLACES: usize = 1 << 16;
/// The shortest and the longest time after which a client that connects too often is told to come again.
pub const CONNECTION_WAIT_TOLD_MIN: Duration = Duration::from_secs(1);
/// See above.
pub const CONNECTION_WAIT_TOLD_MAX: Duration = Duration::from_secs(3600);
/// Lines of the log about refused connections, for each shard within [`CONNECTIONS_TOLD_TICKS`]; the others are summed up in
/// one more.
pub const CONNECTIONS_TOLD: u32 = 20;
/// How long that is, in ticks; a multiple of [`SLOW_TICKS`].
pub const CONNECTIONS_TOLD_TICKS: u64 = 10 * SLOW_TICKS;

const _: () = assert!(CLIENT_IPV6_PREFIX >= NETWORK_IPV6_PREFIX && NETWORK_IPV6_PREFIX <= 48, "see the keys");
const _: () = assert!(NETWORK_IPV4_PREFIX >= 1 && NETWORK_IPV4_PREFIX <= 32);
// ---- smtp: client ----

/// Octets of a streamed content asked of the owner at a time. One such piece is being written to the socket while
/// the next is being read, so a delivery holds two of them.
pub const CLIENT_CONTENT_PIECE_OCTETS_MAX: usize = 64 * 1024;

/// Chunks (BDAT) of a streamed content that may be under way without a reply, where the peer offers PIPELINING.
/// With pieces of 64 KiB, half a megabyte: enough for a long, fast line.
pub const CLIENT_CHUNKS_UNANSWERED_MAX: u32 = 8;

/// Octets kept of the name a peer gives in its greeting: as long as a domain can be (RFC 5321 4.5.3.1.2).
pub const PEER_NAME_OCTETS_MAX: usize = 255;

/// Octets that are read of a file with a private key: an RSA key of 8,192 bits takes 7 KiB, its certificates may come before.
pub const KEY_FILE_OCTETS_MAX: u64 = 256 * 1024;

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

const _: () = assert!(DSN_RETURNED_HEADERS_OCTETS_MAX <= DSN_HEAD as usize);
const _: () = assert!(DSN_RETURNED_OCTETS_MAX <= DSN_HEAD as usize, "what is returned was read");
/// Sessions of one shard, at most, whatever the configuration says: the table that counts them by client and network has four
/// times as many places of 16 octets.
pub const SESSIONS_MAX: usize = 1 << 20;

const _: () = assert!(CLIENT_IPV6_PREFIX <= 64, "a client is known by 64 bits");

/// Headers that a listener can demand.
pub const REQUIRED_HEADERS_MAX: usize = 16;

// ---- quotas ----

/// Counts of hours and days are reserved on disk in so many blocks: one is what a crash loses at most, besides the recipients of
/// messages that were under way.
pub const QUOTA_BLOCKS: u32 = 16;
/// How long a message waits for its count to be on disk, with its session.
pub const RESERVATION_TIME: Duration = Duration::from_secs(5);
// ---- policy: classes of replies ----

/// Octets of a reply's text that its class is found by: what peers say stands at the beginning.
pub const CLASSIFIED_OCTETS_MAX: usize = 1024;
/// Patterns of all rules together, the operator's and the shipped ones.
pub const CLASSIFIER_PATTERNS_MAX: usize = 2000;
/// Octets of the compiled patterns; beyond it a file of rules is refused.
pub const CLASSIFIER_OCTETS_MAX: usize = 32 << 20;
/// Octets in which each shard remembers how far a search got; where it is used up a search goes on more slowly.
pub const CLASSIFIER_CACHE_OCTETS_MAX: usize = 8 << 20;
/// Octets of a file of rules.
pub const RULES_FILE_OCTETS_MAX: u64 = 1 << 20;

const _: () = assert!(CLASSIFIED_OCTETS_MAX <= PEER_REPLY_OCTETS_MAX);
const _: () = assert!(CLASSIFIER_PATTERNS_MAX <= u16::MAX as usize, "a decision names a pattern by 16 bits");

// ---- suppression ----

/// Parts of the table of suppressed addresses, which grow one by one.
pub const SUPPRESSION_PARTS: usize = 256;
/// Entries, at most: some 40 octets of memory each, and twice that on disk.
pub const SUPPRESSION_ENTRIES_MAX: usize = 50_000_000;
/// Entries in one request of an operator, and in one page of a list.
pub const SUPPRESSION_PAGE_MAX: usize = 5_000;
/// Messages all of whose recipients are suppressed that are ended in one go while a connection looks for work.
pub const SUPPRESSED_PER_PICK: usize = 64;
/// Octets of the reason of an entry.
pub const SUPPRESSION_REASON_MAX: usize = 200;
/// Bounces that wait for the disk to be put into the lists; beyond, they are dropped and told.
pub const BOUNCES_WAITING_MAX: usize = 65_536;
/// Addresses whose soft bounces are remembered; beyond, those that bounced first are forgotten.
pub const SOFT_BOUNCES_MAX: usize = 100_000;

// ---- content filters ----

/// How long all filters together may take for one message, turns waited for included. Clients wait ten minutes for the reply to
/// their content (RFC 5321 4.5.3.2.6), and many less than that.
pub const FILTERS_TIME: Duration = Duration::from_secs(300);

/// Octets of header fields that filters may add to one message: room for them is left before a content in a file of its own.
pub const FILTER_HEADERS_MAX: usize = 4_000;
/// Octets of the reason for which a message came to be held.
pub const HOLD_REASON_MAX: usize = 200;
/// Messages that one tick releases whose domain was verified: their recipients are routed at once.
pub const RELEASED_PER_TICK: usize = 1_000;
/// Octets of a filter's own words in a reply.
pub const FILTER_TEXT_MAX: usize = 200;
/// Octets of an answer of a filter, whatever it is.
pub const FILTER_ANSWER_MAX: usize = 1 << 20;
/// Octets of a content read from its file at a time for a filter.
pub const FILTER_PIECE: usize = 256 * 1024;

const _: () = assert!(FILTER_HEADERS_MAX <= ringpost_spool::record::FRONT_MAX as usize);
