//! The flags and arguments of every command, with their help texts. The texts are the reference that people have at
//! hand; docs/CONFIGURATION.md says more.

use super::certificate::CertificateCommand;
use super::classify::ClassifyArgs;
use super::domain::DomainCommand;
use super::identity_args::{CredentialCommand, TenantCommand};
use super::shaping::ShapingArgs;
use super::suppression::SuppressionCommand;
use crate::config::read::{FromText, NameServer};
use crate::config::text;
use crate::control::http::STATES;
use crate::control::log::LogFormat;
use crate::shard::settings::NextHop;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit codes: 0 all is well; 1 nothing found, or the message was refused; 64 wrong flags; 65 the spool is damaged; \
66 a file is missing; 69 not running, or not possible here; 70 a shard died; 71 the system is short of something; \
73 the spool directory cannot be made; 74 input or output failed; 75 in use, or try again later; 78 the configuration \
is wrong.";

/// A high-performance mail transfer agent.
#[derive(Debug, Parser)]
#[command(
    name = "ringpost",
    version,
    about = "A high-performance mail transfer agent for Linux",
    long_about = "ringpost takes bursts of mail by SMTP, makes every message durable before it says 250, and delivers it \
                  with discipline: routed, limited, retried, explained.\n\nTo try it, run `ringpost serve`: without a \
                  configuration nothing leaves this machine.",
    after_help = EXIT_CODES,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay in the foreground until SIGTERM or Ctrl-C
    Serve(Box<ServeArgs>),
    /// Check a configuration file and say what it means
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Look at waiting mail and act on it
    Queue {
        /// What to do.
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Show how the running relay is doing: counts, sites, limits
    Status(StatusArgs),
    /// Add, list, disable and remove tenants: whose mail it is
    Tenant {
        /// What to do.
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Add, list, rotate, disable and remove logins for submission
    Credential {
        /// What to do.
        #[command(subcommand)]
        command: CredentialCommand,
    },
    /// Add, list, verify, rotate and remove the domains that tenants send as, and their DKIM keys
    Domain {
        /// What to do.
        #[command(subcommand)]
        command: DomainCommand,
    },
    /// Add, list, show, remove, import and export the addresses to which nothing is sent any more
    Suppression {
        /// What to do.
        #[command(subcommand)]
        command: SuppressionCommand,
    },
    /// Show the certificates of the listeners, and have them read again
    Certificate {
        /// What to do.
        #[command(subcommand)]
        command: CertificateCommand,
    },
    /// Show what is known of providers and domains: limits, TLS, and where it is from
    ///
    /// The shipped file and one's own together, as the relay reads them; for any mail host or domain with --host or
    /// --domain. No relay needs to run.
    Shaping(ShapingArgs),
    /// Look at what the built-in sandbox took
    Sandbox {
        /// What to do.
        #[command(subcommand)]
        command: SandboxCommand,
    },
    /// Say what replies of mail servers mean: class, kind and the rule that decides
    Classify(ClassifyArgs),
    /// Examine a spool directory
    Spool {
        /// What to do.
        #[command(subcommand)]
        command: SpoolCommand,
    },
    /// Send a message, to try a server
    Send(Box<SendArgs>),
    /// Print a completion script for a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// The directory to write them to; made when missing
        directory: PathBuf,
    },
}

fn duration_in_seconds(text_given: &str) -> Result<Duration, String> {
    match text_given.parse::<u64>() {
        Ok(seconds) if (1..=31_622_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Ok(_) => Err("1 second to a year".into()),
        Err(_) => text::parse_duration(text_given),
    }
}

fn next_hop(text_given: &str) -> Result<NextHop, String> {
    text::parse_next_hop(text_given, 25)
}

fn domain(text_given: &str) -> Result<Box<str>, String> {
    text::parse_domain(text_given)
}

fn name_server(text_given: &str) -> Result<NameServer, String> {
    NameServer::from_text(text_given)
}

fn socket_address(text_given: &str) -> Result<SocketAddr, String> {
    let address = SocketAddr::from_text(text_given)?;
    if address.port() == 0 { Err("a port from 1 to 65535 is needed".into()) } else { Ok(address) }
}

/// The form of log lines, on the command line.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// key=value lines for people
    Human,
    /// One JSON object in each line
    Json,
}

impl From<LogFormatArg> for LogFormat {
    fn from(format: LogFormatArg) -> LogFormat {
        match format {
            LogFormatArg::Human => LogFormat::Human,
            LogFormatArg::Json => LogFormat::Json,
        }
    }
}

/// `ringpost serve`
#[derive(Debug, Args)]
#[command(
    long_about = "Runs the relay in the foreground until SIGTERM or Ctrl-C, which finish what is under way; a second one \
                  stops at once. What was acknowledged is on disk either way.\n\nWithout --config it takes mail from this \
                  machine on 127.0.0.1:2525 and delivers it to a built-in sandbox. Each flag replaces a part of the \
                  configuration; with any flag clients on loopback have no limits of their own."
)]
pub struct ServeArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "RINGPOST_CONFIG")]
    pub config: Option<PathBuf>,
    /// Keep accepted mail in this directory [default: var/spool]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Take mail here, with STARTTLS offered; relays for clients on loopback. Repeat for several
    #[arg(long, value_name = "ADDR:PORT", value_parser = socket_address)]
    pub listen: Vec<SocketAddr>,
    /// Submission with STARTTLS, as on port 587
    #[arg(long, value_name = "ADDR:PORT", value_parser = socket_address)]
    pub submission: Vec<SocketAddr>,
    /// Submission under TLS, as on port 465
    #[arg(long, value_name = "ADDR:PORT", value_parser = socket_address)]
    pub submissions: Vec<SocketAddr>,
    /// Make each line `login:password` of this file a credential of the tenant "default"
    #[arg(long, value_name = "FILE")]
    pub credential_file: Option<PathBuf>,
    /// Send everything to this host; repeat for a pool, which is used in order
    #[arg(long, value_name = "HOST:PORT", value_parser = next_hop, conflicts_with_all = ["delivery_port"])]
    pub next_hop: Vec<NextHop>,
    /// Connections at a time to each site [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: Option<u32>,
    /// Wait this long before the first and every further retry: seconds, or as in 20m
    #[arg(long, value_name = "SECONDS", value_parser = duration_in_seconds)]
    pub retry: Option<Duration>,
    /// Accept mail and deliver nothing
    #[arg(long)]
    pub hold: bool,
    /// How many shards [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub shards: Option<u16>,
    /// Ask this name server; without --next-hop mail goes to the domains' own mail hosts
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = name_server)]
    pub resolver: Option<NameServer>,
    /// Deliver to the domains' own mail hosts, on this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub delivery_port: Option<u16>,
    /// The name in greetings and headers [default: this machine's]
    #[arg(long, value_name = "NAME", value_parser = domain)]
    pub hostname: Option<Box<str>>,
    /// The form of log lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormatArg>,
    /// Metrics and health by HTTP at this loopback address [default: 127.0.0.1:9525]
    #[arg(long, value_name = "ADDR:PORT", value_parser = socket_address)]
    pub metrics: Option<SocketAddr>,
    /// No metrics port
    #[arg(long, conflicts_with = "metrics")]
    pub no_metrics: bool,
    /// The admin socket [default: control.sock in the spool directory]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Started as root, become this user once the ports are bound [default: ringpost, where there is such a user]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// How a command finds the running relay.
#[derive(Clone, Debug, Default, Args)]
pub struct Target {
    /// The admin socket of the running relay
    #[arg(long, value_name = "PATH", env = "RINGPOST_ADMIN_SOCKET", global = true)]
    pub admin_socket: Option<PathBuf>,
    /// Its spool directory, where the socket is by default [default: var/spool]
    #[arg(long, value_name = "DIR", conflicts_with = "admin_socket", global = true)]
    pub spool: Option<PathBuf>,
    /// Its configuration file, which says where the socket is
    #[arg(long, value_name = "FILE", conflicts_with_all = ["admin_socket", "spool"], env = "RINGPOST_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

/// Which messages.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// With a recipient in this domain
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// With this reverse path; '' for notifications
    #[arg(long, value_name = "ADDRESS")]
    pub sender: Option<String>,
    /// With this recipient
    #[arg(long, value_name = "ADDRESS")]
    pub recipient: Option<String>,
    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// In this state
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES))]
    pub state: Option<String>,
}

/// Which messages to act on.
#[derive(Clone, Debug, Args)]
pub struct ActArgs {
    /// Ids, as in `250 2.0.0 OK: queued as ID`
    #[arg(value_name = "ID", conflicts_with_all = ["domain", "sender", "recipient", "tenant", "state", "all"])]
    pub ids: Vec<String>,
    /// Filters; a message must fit all that are given.
    #[command(flatten)]
    pub which: Which,
    /// All messages; needed when nothing else is given
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The relay.
    #[command(flatten)]
    pub target: Target,
}

/// `ringpost queue …`
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// List waiting messages, oldest first
    List {
        /// Filters; a message must fit all that are given.
        #[command(flatten)]
        which: Which,
        /// At most so many messages; 0 for all
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Show a message and what each of its recipients waits for
    Show {
        /// Its id, as in `250 2.0.0 OK: queued as ID`
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Attempt now, whatever the schedule says
    Retry(ActArgs),
    /// Attempt no more until released
    Hold(ActArgs),
    /// End a hold
    Release(ActArgs),
    /// Delete messages for good: nothing is delivered and nobody is told
    Delete(ActArgs),
}

/// `ringpost status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How many sites to show, the busiest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub sites: usize,
    /// The relay.
    #[command(flatten)]
    pub target: Target,
}

/// `ringpost sandbox …`
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// List the messages it keeps, oldest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Show one message: its envelope and what was kept of its content
    Show {
        /// Its number in the list, or the id it was queued under
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

/// `ringpost spool …`
#[derive(Debug, Subcommand)]
pub enum SpoolCommand {
    /// Read everything and compare all checksums; changes nothing and may be used beside a running relay
    Verify {
        /// The spool directory
        directory: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Do what a start does before it delivers: read the spool, list what waits, remove left-over content
    Recover {
        /// The spool directory; no relay may run on it
        directory: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print every batch and record, one in each line
    Dump {
        /// The spool directory
        directory: PathBuf,
        /// Only this segment, as in 00-00002a
        #[arg(long, value_name = "SEGMENT")]
        segment: Option<String>,
    },
}

/// `ringpost send`
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2525", value_parser = next_hop)]
    pub server: NextHop,
    /// The sender; '' for the null reverse path
    #[arg(long, value_name = "ADDRESS")]
    pub from: String,
    /// A recipient; repeat for several
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub to: Vec<String>,
    /// The subject
    #[arg(long, value_name = "TEXT", default_value = "Test")]
    pub subject: String,
    /// The text; '-' reads it from standard input
    #[arg(long, value_name = "TEXT", default_value = "This is a test message.", conflicts_with = "message")]
    pub body: String,
    /// A whole message with its headers; '-' reads it from standard input
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    pub message: Option<PathBuf>,
    /// Use STARTTLS or give up; certificates are not verified
    #[arg(long)]
    pub starttls: bool,
    /// The name to give in EHLO [default: this machine's]
    #[arg(long, value_name = "NAME", value_parser = domain)]
    pub ehlo: Option<Box<str>>,
    /// Give up when the server is silent for so long
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = duration_in_seconds)]
    pub timeout: Duration,
    /// Print the dialogue
    #[arg(long, short)]
    pub verbose: bool,
}
