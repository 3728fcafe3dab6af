//! `ringpost serve` and `ringpost check-config`.

use super::args::ServeArgs;
use super::{Failure, exit};
use crate::config::{Config, Overrides};
use crate::server::{Terminal, check_files, serve};
use std::path::Path;

/// Runs the relay.
pub fn run(args: ServeArgs, program: &str) -> Result<u8, Failure> {
    let from_file = args.config.is_some();
    let config = match &args.config {
        Some(file) => Config::load(file)?,
        None => Config::embedded()?,
    };
    let overrides = Overrides {
        hostname: args.hostname,
        spool: args.spool,
        listen: args.listen,
        submission: args.submission,
        submissions: args.submissions,
        next_hops: args.next_hop,
        connections: args.connections,
        retry: args.retry,
        hold: args.hold,
        shards: args.shards,
        resolver: args.resolver,
        delivery_port: args.delivery_port,
        log_format: args.log_format.map(Into::into),
        metrics: args.metrics,
        no_metrics: args.no_metrics,
        admin_socket: args.admin_socket,
        user: args.user,
    };
    let config = overrides.apply(config).map_err(|error| Failure::new(exit::USAGE, error.to_string()))?;
    let terminal =
        Terminal { recipe_for: (!from_file).then(|| program.to_owned()), credential_file: args.credential_file };
    match serve(&config, &terminal) {
        Ok(()) => Ok(exit::OK),
        Err(error) => Err(Failure::new(error.exit_code(), error.to_string())),
    }
}

/// Reads a configuration with the certificates it names, and says what it means.
pub fn check_config(file: &Path) -> Result<u8, Failure> {
    use std::io::Write;
    let config = Config::load(file)?;
    let certificates = check_files(&config).map_err(|problem| Config::locate(file, problem))?;
    let classifier = config.classification.classifier()?;
    let out = &mut std::io::stdout().lock();
    writeln!(out, "ok\n{}", config.summary())?;
    for line in certificates {
        writeln!(out, "{line}")?;
    }
    if let Some(rules) = &config.classification.rules {
        writeln!(out, "rules      {}, {} patterns with the shipped ones", rules.display(), classifier.patterns())?;
    }
    Ok(exit::OK)
}
