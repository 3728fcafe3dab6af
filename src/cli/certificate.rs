//! `ringpost certificate`: what the listeners present, and reading it again.

use super::args::Target;
use super::client::Relay;
use super::queue::write_json;
use super::table::counted;
use super::{Failure, exit};
use crate::config::Config;
use crate::control::certificates::{CertificateView, Reloaded};
use crate::control::log::sanitised;
use crate::server::certificates_of;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use std::io::{self, Write};

/// `ringpost certificate …`
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Show the certificates of the listeners: names, end, fingerprints, files
    List {
        /// Read the files that --config names, without a running relay
        #[arg(long)]
        files: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Read certificates, keys and authorities of clients again; sessions go on
    Reload {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Order a new certificate by ACME now, whatever the schedule says; the log tells what comes of it
    Renew {
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

/// Carries out one of the commands.
pub fn certificate(command: CertificateCommand) -> Result<u8, Failure> {
    let out = &mut io::stdout().lock();
    match command {
        CertificateCommand::List { files, json, target } => {
            let certificates =
                if files { from_files(&target)? } else { Relay::find(&target)?.get("/v1/certificates")? };
            if json {
                write_json(out, &certificates)?;
            } else {
                list(out, &certificates)?;
            }
            Ok(exit::OK)
        }
        CertificateCommand::Reload { json, target } => {
            let reloaded: Reloaded = Relay::find(&target)?.post("/v1/certificates/reload", &())?;
            if json {
                write_json(out, &reloaded)?;
            } else {
                for file in &reloaded.changed {
                    writeln!(out, "new      {}", sanitised(file))?;
                }
                let count = counted(reloaded.in_force as u64, "certificate");
                writeln!(out, "{count} in use, {} new", reloaded.changed.len())?;
            }
            if reloaded.failed.is_empty() {
                return Ok(exit::OK);
            }
            let text = reloaded.failed.iter().map(|text| sanitised(text)).collect::<Vec<_>>().join("\nringpost: ");
            Err(Failure::new(exit::NOTHING, format!("what was read before stays in use: {text}")))
        }
        CertificateCommand::Renew { target } => {
            let () = Relay::find(&target)?.post("/v1/certificates/renew", &())?;
            writeln!(out, "ordered; the log tells what comes of it")?;
            Ok(exit::OK)
        }
    }
}

fn from_files(target: &Target) -> Result<Vec<CertificateView>, Failure> {
    let Some(file) = &target.config else {
        return Err(Failure::new(exit::USAGE, "--files needs --config FILE, which says where they are"));
    };
    let config = Config::load(file)?;
    certificates_of(&config).map_err(|error| Failure::new(exit::CONFIG, error.to_string()))
}

fn list(out: &mut dyn Write, certificates: &[CertificateView]) -> io::Result<()> {
    for one in certificates {
        writeln!(out, "file         {}", sanitised(&one.file))?;
        let names = if one.names.is_empty() { "none".to_owned() } else { sanitised(&one.names.join(" ")) };
        writeln!(out, "names        {names}")?;
        let others = if one.default { ", and for those that ask for no name or another one" } else { "" };
        writeln!(out, "used for     clients that ask for its names{others}")?;
        writeln!(out, "subject      {}", sanitised(&one.subject))?;
        let own = if one.issuer == one.subject { " (signed by itself)" } else { "" };
        writeln!(out, "issuer       {}{own}", sanitised(&one.issuer))?;
        writeln!(out, "from         {}", one.not_before)?;
        let left = match one.days_left {
            days if days < 0 => "it has ended".to_owned(),
            0 => "less than a day left".to_owned(),
            days => format!("{} left", counted(days.unsigned_abs(), "day")),
        };
        writeln!(out, "until        {}, {left}", one.not_after)?;
        writeln!(out, "fingerprint  SHA-256 {}", one.fingerprint_sha256)?;
        writeln!(out, "public key   sha256//{}", pin(&one.public_key_sha256))?;
        writeln!(out, "TLSA         3 1 1 {}", one.public_key_sha256)?;
        if let Some(trouble) = &one.trouble {
            writeln!(out, "trouble      {}", sanitised(trouble))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{}", counted(certificates.len() as u64, "certificate"))
}

/// A digest in hexadecimal as Base64, the form of pins (RFC 7469 2.4).
fn pin(hexadecimal: &str) -> String {
    let octets = hexadecimal.as_bytes().chunks(2).filter_map(|pair| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    });
    STANDARD.encode(octets.collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_the_digest_in_another_form() {
        assert_eq!(pin("00ff10"), "AP8Q");
    }
}
