//! The fixed replies of a session. Each refusal says what to do about it.
//!
//! Not here: replies with something of the occasion in them, which are made where they are given.

use crate::reply::Reply;

/// MAIL was accepted.
pub const SENDER_OK: &[u8] = b"250 2.1.0 OK\r\n";
/// RCPT was accepted.
pub const RECIPIENT_OK: &[u8] = b"250 2.1.5 OK\r\n";
/// RSET and NOOP.
pub const OK: &[u8] = b"250 2.0.0 OK\r\n";
/// DATA was accepted.
pub const START_CONTENT: &[u8] = b"354 Start mail input; end with CRLF.CRLF\r\n";
/// STARTTLS was accepted.
pub const START_TLS: &[u8] = b"220 2.0.0 Ready to start TLS\r\n";
/// AUTH succeeded (RFC 4954 6).
pub const AUTHENTICATION_SUCCESSFUL: &[u8] = b"235 2.7.0 Authentication successful\r\n";
/// QUIT.
pub const GOODBYE: &[u8] = b"221 2.0.0 Goodbye\r\n";

/// VRFY (RFC 5321 3.5.3: 252 when it is not verified, but mail would be tried).
pub const NOT_VERIFIED: Reply =
    Reply::fixed(252, 2, 1, 5, "Addresses are not verified; send the message and its delivery is tried");
/// HELP.
pub const HELP: Reply = Reply::fixed(
    214,
    2,
    0,
    0,
    "Commands: EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT\n\
     One message: EHLO name, MAIL FROM:<you@example.org>, RCPT TO:<them@example.net>, DATA,\n\
     then the message and a line of one dot; its reply names the id to ask for",
);

/// A line over its bound (RFC 5321 4.5.3.1.4).
pub const LINE_TOO_LONG: Reply = Reply::fixed(500, 5, 5, 2, "Line too long, skipped; use shorter command lines");
/// A bare CR or LF in a command line (RFC 5321 2.3.8).
pub const BARE_NEWLINE_IN_LINE: Reply =
    Reply::fixed(500, 5, 5, 2, "Bare CR or LF in a command; end each line with CRLF. Skipping to the next CRLF");
/// A NUL in a command line.
pub const NUL_IN_LINE: Reply = Reply::fixed(500, 5, 5, 2, "NUL in a command, skipped to the next CRLF; send text");
/// No verb that we know.
pub const UNKNOWN_COMMAND: Reply = Reply::fixed(500, 5, 5, 1, "Command not known; HELP lists the commands");
/// A verb that we know and do not have (RFC 5321 4.2.4).
pub const NOT_IMPLEMENTED: Reply = Reply::fixed(502, 5, 5, 1, "Command not offered here; EHLO lists what is");
/// Something behind a command that takes nothing.
pub const NO_PARAMETERS: Reply = Reply::fixed(501, 5, 5, 4, "This command takes no parameters; send it alone");
/// The name of HELO or EHLO.
pub const BAD_HELLO: Reply =
    Reply::fixed(501, 5, 5, 4, "Syntax: EHLO your.host.name or EHLO [192.0.2.1], without spaces");
/// HELO or EHLO with a name that cannot be another host's, where the listener looks at it.
pub const UNQUALIFIED_HELLO: Reply = Reply::fixed(
    504,
    5,
    5,
    2,
    "Give your host's whole name, as in EHLO mail.example.com, or its address, as in EHLO [192.0.2.1]",
);
/// HELO or EHLO with our own name or address, where the listener looks at it.
pub const OWN_HELLO: Reply = Reply::fixed(550, 5, 7, 1, "That is this host's own name or address; give yours");
/// Something before the greeting, where that waits.
pub const SPOKE_EARLY: Reply =
    Reply::fixed(554, 5, 5, 1, "You spoke before the greeting; connect again and wait for it (RFC 5321 3.1)");
/// VRFY without anything.
pub const VERIFY_WHAT: Reply = Reply::fixed(501, 5, 5, 4, "Syntax: VRFY address");
/// BDAT (RFC 3030 2).
pub const BAD_BDAT: Reply = Reply::fixed(501, 5, 5, 4, "Syntax: BDAT octets [LAST]");
/// MAIL.
pub const BAD_MAIL: Reply = Reply::fixed(501, 5, 5, 4, "Syntax: MAIL FROM:<address> [parameters]");
/// RCPT.
pub const BAD_RCPT: Reply = Reply::fixed(501, 5, 5, 4, "Syntax: RCPT TO:<address> [parameters]");
/// RCPT TO:<>.
pub const NULL_RECIPIENT: Reply = Reply::fixed(501, 5, 1, 3, "The null path is for MAIL alone; give an address");
/// A parameter twice.
pub const TWICE: Reply = Reply::fixed(501, 5, 5, 4, "The same parameter is given twice; give it once");
/// A parameter that we did not offer (RFC 5321 4.1.1.11).
pub const UNKNOWN_PARAMETER: Reply =
    Reply::fixed(555, 5, 5, 4, "Parameter not known or not offered; leave it out (EHLO lists what is offered)");
/// A parameter of the wrong form.
pub const BAD_PARAMETER: Reply =
    Reply::fixed(501, 5, 5, 4, "A parameter is not of the form KEYWORD or KEYWORD=VALUE; correct it");
/// SIZE=.
pub const BAD_SIZE: Reply = Reply::fixed(501, 5, 5, 4, "SIZE must be a number of octets, at most 20 digits");
/// BODY=.
pub const BAD_BODY: Reply = Reply::fixed(501, 5, 5, 4, "BODY must be 7BIT or 8BITMIME");
/// BODY=BINARYMIME.
pub const NO_BINARYMIME: Reply =
    Reply::fixed(504, 5, 5, 4, "BINARYMIME is not offered; encode the content and use BODY=8BITMIME or 7BIT");
/// SMTPUTF8=.
pub const BAD_SMTPUTF8: Reply = Reply::fixed(501, 5, 5, 4, "SMTPUTF8 takes no value");
/// REQUIRETLS.
pub const BAD_REQUIRETLS: Reply = Reply::fixed(501, 5, 5, 4, "REQUIRETLS takes no value");
/// RET=.
pub const BAD_RET: Reply = Reply::fixed(501, 5, 5, 4, "RET must be FULL or HDRS");
/// ENVID=.
pub const BAD_ENVID: Reply = Reply::fixed(501, 5, 5, 4, "ENVID must be xtext of 1 to 100 characters (RFC 3461)");
/// NOTIFY=.
pub const BAD_NOTIFY: Reply =
    Reply::fixed(501, 5, 5, 4, "NOTIFY must be NEVER alone, or of SUCCESS, FAILURE and DELAY with commas between");
/// ORCPT=.
pub const BAD_ORCPT: Reply =
    Reply::fixed(501, 5, 5, 4, "ORCPT must be rfc822;xtext or utf-8;address of at most 500 characters (RFC 3461)");

/// MAIL before EHLO (RFC 5321 4.1.4).
pub const HELLO_FIRST: Reply = Reply::fixed(503, 5, 5, 1, "Send EHLO or HELO first");
/// MAIL in a transaction (RFC 5321 4.1.4).
pub const NESTED_MAIL: Reply =
    Reply::fixed(503, 5, 5, 1, "A transaction is under way; finish it or send RSET before MAIL");
/// RCPT, DATA or BDAT without MAIL.
pub const MAIL_FIRST: Reply = Reply::fixed(503, 5, 5, 1, "No transaction is under way; send MAIL first");
/// RCPT or DATA between chunks (RFC 3030 2).
pub const CHUNKS_UNDER_WAY: Reply =
    Reply::fixed(503, 5, 5, 1, "BDAT has begun; go on with BDAT up to BDAT n LAST, or send RSET");
/// DATA without RCPT.
pub const RECIPIENT_FIRST: Reply = Reply::fixed(503, 5, 5, 1, "No recipient yet; send RCPT first");
/// DATA when all RCPT were refused (RFC 5321 3.3).
pub const NO_RECIPIENTS: Reply =
    Reply::fixed(554, 5, 5, 1, "No valid recipients; all were refused, see the replies to RCPT");
/// STARTTLS under TLS.
pub const TLS_ACTIVE: Reply = Reply::fixed(503, 5, 5, 1, "TLS is already active; go on with EHLO");
/// STARTTLS in a transaction.
pub const NO_TLS_NOW: Reply = Reply::fixed(503, 5, 5, 1, "A transaction is under way; send RSET before STARTTLS");

/// AUTH in the clear (RFC 4954 6).
pub const ENCRYPT_FIRST: Reply =
    Reply::fixed(538, 5, 7, 11, "Encryption required before a password is sent: use STARTTLS, or the port for TLS");
/// AUTH twice (RFC 4954 4).
pub const AUTHENTICATED: Reply = Reply::fixed(503, 5, 5, 1, "Already logged in; connect again to use another login");
/// AUTH in a transaction (RFC 4954 4).
pub const NO_AUTH_NOW: Reply = Reply::fixed(503, 5, 5, 1, "A transaction is under way; send RSET before AUTH");
/// AUTH.
pub const BAD_AUTH: Reply = Reply::fixed(501, 5, 5, 4, "Syntax: AUTH mechanism [initial response]");
/// AUTH with a mechanism that is not offered (RFC 4954 4).
pub const UNKNOWN_MECHANISM: Reply =
    Reply::fixed(504, 5, 5, 4, "Authentication mechanism not offered; EHLO lists those that are");
/// An answer that is not base64, or says nothing (RFC 4954 4).
pub const BAD_AUTH_ANSWER: Reply =
    Reply::fixed(501, 5, 5, 2, "The answer cannot be read: it must be base64 (RFC 4648) of what was asked for");
/// `*` (RFC 4954 4).
pub const AUTH_CANCELLED: Reply = Reply::fixed(501, 5, 7, 0, "Authentication cancelled");
/// A login that is not known, wrong, expired or disabled: nobody learns which (RFC 4954 6).
pub const AUTH_INVALID: Reply = Reply::fixed(535, 5, 7, 8, "Authentication credentials invalid");
/// A login that cannot be judged now (RFC 4954 6).
pub const AUTH_UNAVAILABLE: Reply = Reply::fixed(454, 4, 7, 0, "Logins cannot be checked now; try again in a minute");
/// AUTH by SCRAM without a binding that the client says is not offered, while it is (RFC 5802 6).
pub const AUTH_DOWNGRADED: Reply = Reply::fixed(
    535,
    5,
    7,
    8,
    "SCRAM-SHA-256-PLUS is offered here, but you were not told; somebody may stand between us",
);
/// AUTH= of MAIL.
pub const BAD_AUTH_PARAMETER: Reply = Reply::fixed(501, 5, 5, 4, "AUTH must be <> or an address as xtext (RFC 4954 5)");

/// RCPT over the bound (RFC 5321 4.5.3.1.10).
pub const TOO_MANY_RECIPIENTS: Reply =
    Reply::fixed(452, 4, 5, 3, "Too many recipients; send this message now and the others in another transaction");
/// SIZE=, or content, over the bound (RFC 1870 6).
pub const TOO_BIG: Reply =
    Reply::fixed(552, 5, 3, 4, "The message is larger than EHLO's SIZE; make it smaller or send a link");
/// A chunk whose length is beyond all numbers.
pub const CHUNK_TOO_BIG: Reply =
    Reply::fixed(552, 5, 3, 4, "The chunk cannot be that long; closing, since its end cannot be found");
/// A bare CR or LF in content (RFC 5321 2.3.8).
pub const BARE_NEWLINE: Reply =
    Reply::fixed(550, 5, 6, 11, "The message has a CR or LF alone; send each line ended by CRLF");
/// A NUL in content.
pub const NUL: Reply = Reply::fixed(550, 5, 6, 11, "The message has a NUL octet; encode binary content (base64)");
