//! An rspamd of the test's own: with one rule, on free ports, ended with the test. It asks nobody on the network.

use super::PATIENCE;
use super::programs::{find, kill_group, skip, stop_with_parent};
use super::relay::{Directory, free_address};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a subject asks for is done; headers tell what rspamd was told.
const RULE: &str = r#"
rspamd_config:register_symbol({ name = 'BY_SUBJECT', type = 'prefilter', priority = 10, callback = function(task)
  local action = (task:get_subject() or ''):match('^action: (.+)$')
  if not action then return end
  local told = { task:get_user() or 'nobody', tostring(task:get_from_ip()), task:get_helo() or 'none',
    task:get_from('smtp')[1].addr, tostring(#task:get_recipients('smtp')), task:get_queue_id() or 'none',
    tostring(#task:get_content()) }
  task:set_milter_reply({ add_headers = { ['X-Told'] = table.concat(told, ' '), ['Subject'] = 'another' } })
  task:set_pre_result({ action = action, message = 'the rule says ' .. action, module = 'test' })
end })
"#;

/// A running rspamd.
pub struct Rspamd {
    child: Child,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// Where it speaks the milter protocol.
    pub milter: SocketAddr,
    directory: Directory,
}

impl Rspamd {
    /// Starts one and waits until it answers; none where it is not installed.
    pub fn start() -> Option<Rspamd> {
        let Some(program) = find("rspamd") else {
            skip("rspamd is not installed; apt-get install rspamd");
            return None;
        };
        let directory = Directory::below(&std::env::temp_dir());
        let (http, milter) = (free_address(), free_address());
        let place = directory.path().display();
        directory.file("suffixes", "test\n");
        directory.file("rule.lua", RULE);
        directory.file(
            "rspamd.conf",
            format!(
                r#"
lua = "{place}/rule.lua";
options {{
  filters = ""; url_tld = "{place}/suffixes"; pidfile = "{place}/pid"; tempdir = "{place}"; rrd = "";
  control_socket = "{place}/control"; history_file = "{place}/history"; hs_cache_dir = "{place}"; stats_file = "{place}/stats";
  dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
}}
logging {{ type = "file"; filename = "{place}/log"; level = "info"; }}
worker "normal" {{ bind_socket = "{http}"; count = 1; }}
worker "rspamd_proxy" {{
  bind_socket = "{milter}"; milter = yes; count = 1; timeout = 60s; upstream "local" {{ default = yes; self_scan = yes; }}
}}
actions {{
  reject = 15; add_header = 6; greylist = 4;
  quarantine = {{ flags = ["no_threshold"]; }} discard = {{ flags = ["no_threshold"]; }}
}}
"#
            ),
        );
        let mut command = Command::new(program);
        command.args(["-f", "-i", "-c"]).arg(directory.join("rspamd.conf")).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        stop_with_parent(&mut command);
        let child = command.spawn().expect("rspamd starts");
        let mut rspamd = Rspamd { child, http, milter, directory };
        let deadline = Instant::now() + PATIENCE;
        while [http, milter].iter().any(|address| TcpStream::connect(address).is_err()) {
            let ended = rspamd.child.try_wait().expect("a look at the process");
            assert!(ended.is_none() && Instant::now() < deadline, "rspamd does not run: {ended:?}\n{}", rspamd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(rspamd)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Rspamd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- rspamd's log\n{}", self.log());
        }
        kill_group(&mut self.child);
    }
}
