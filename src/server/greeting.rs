//! What `ringpost serve` prints on the terminal once it runs without a configuration: where it listens, and three
//! lines that send a first message and show what became of it.

use crate::config::{Config, ListenerTls};
use std::net::SocketAddr;

/// The lines to print. `program` is how this program was called.
pub fn recipe(
    config: &Config,
    program: &str,
    sandbox: Option<SocketAddr>,
    first_login: Option<&(String, String)>,
) -> String {
    let addresses = crate::config::settings::listen_addresses(config);
    let Some(first) = addresses.first() else { return String::new() };
    let listening: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut lines = vec![format!("ringpost {} takes mail on {}", env!("CARGO_PKG_VERSION"), listening.join(", "))];
    if let Some(metrics) = config.admin.metrics {
        lines.push(format!("metrics are at http://{metrics}/metrics"));
    }
    match sandbox {
        Some(sandbox) => {
            lines.push(format!("everything goes to the built-in sandbox at {sandbox}; nothing leaves this machine"));
        }
        None => lines.push(format!("it goes to: {}", crate::config::settings::route_plan(config).join("; "))),
    }
    if let Some((login, password)) = first_login {
        lines.push(String::new());
        lines.push("A first login for submission under TLS (the password is shown this once):".into());
        for listener in config.listener.iter().filter(|listener| listener.authentication()) {
            let tls = if listener.tls == ListenerTls::Implicit { "TLS from the start" } else { "STARTTLS" };
            let addresses: Vec<String> = listener.address.iter().map(ToString::to_string).collect();
            lines.push(format!("  {} with {tls}", addresses.join(", ")));
        }
        lines.push(format!("  login {login}, password {password}"));
        let starttls = config.listener.iter().find(|one| one.authentication() && one.tls == ListenerTls::Starttls);
        if let Some(address) = starttls.and_then(|listener| listener.address.first()) {
            lines.push(format!(
                "  swaks --server {} --tls --auth-user {login} --auth-password {password} --from me@example.com --to you@example.org",
                reachable(*address)
            ));
        }
    } else if config.listener.iter().any(|listener| listener.authentication()) {
        let flag = socket_flag(config);
        lines.push(String::new());
        lines
            .push("Submission under TLS takes the logins that are there already; a lost password is made anew:".into());
        lines.push(format!("  {program} credential list{flag}"));
        lines.push(format!("  {program} credential rotate LOGIN{flag}"));
    }
    let server = reachable(*first);
    lines.push(String::new());
    lines
        .push("Send a first message from another terminal, with curl or with swaks, and see what became of it:".into());
    lines.push(format!(
        r"  printf 'Subject: hello\r\n\r\nHello.\r\n' | curl -sS smtp://{server} --mail-from me@example.com --mail-rcpt you@example.org -T -"
    ));
    lines.push(format!("  swaks --server {server} --from me@example.com --to you@example.org"));
    let show = if sandbox.is_some() { "sandbox list" } else { "status" };
    lines.push(format!("  {program} {show}{}", socket_flag(config)));
    lines.push(String::new());
    lines.push("Ctrl-C finishes what is under way and stops.".into());
    lines.join("\n")
}

/// The address to connect to for one that is listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), v6.port())
        }
        other => other,
    }
}

/// How the admin commands find this instance, when not by themselves.
fn socket_flag(config: &Config) -> String {
    let default = Config::embedded().map(|config| config.admin_socket());
    if let Some(socket) = &config.admin.socket {
        return format!(" --admin-socket {}", socket.display());
    }
    match default {
        Ok(default) if default == config.admin_socket() => String::new(),
        _ => format!(" --spool {}", config.spool.dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn the_recipe_names_what_runs() {
        let config = Config::embedded().unwrap();
        let text =
            recipe(&config, "ringpost", Some(([127, 0, 0, 1], 4025).into()), Some(&("demo".into(), "pw".into())));
        assert!(text.contains("login demo, password pw") && text.contains("127.0.0.1:2465 with TLS from"), "{text}");
        assert!(text.contains("smtp://127.0.0.1:2525") && text.contains("swaks --server 127.0.0.1:2525"), "{text}");
        assert!(text.contains("\n  ringpost sandbox list\n"), "{text}");
        let again = recipe(&config, "ringpost", None, None);
        assert!(again.contains("\n  ringpost credential rotate LOGIN\n") && !again.contains("password pw"), "{again}");
        let overrides = Overrides {
            spool: Some("/tmp/other".into()),
            listen: vec!["0.0.0.0:2501".parse().unwrap()],
            ..Overrides::default()
        };
        let text = recipe(&overrides.apply(config).unwrap(), "bin/ringpost", Some(([127, 0, 0, 1], 4025).into()), None);
        assert!(text.contains("smtp://127.0.0.1:2501"), "{text}");
        assert!(text.contains("bin/ringpost sandbox list --spool /tmp/other"), "{text}");
    }
}
