//! A client logs in: recognised at once from what the shard remembers, or asked of the control thread, which has the time
//! for a password hash and counts what fails. Proofs of SCRAM are cheap and were checked by the session.
//!
//! Not here: who may (src/policy/identity.rs). A session that ends meanwhile is not missed; one that waits too long is
//! closed by its own deadline.

use crate::clock::Now;
use crate::io::handler::{ClientCertificate, ConnId};
use crate::policy::identity::Credential;
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::InboundState;
use crate::shard::message::{LoginQuestion, LoginVerdict, Report};
use crate::smtp::replies::AUTH_INVALID;
use crate::smtp::sasl::Login;
use crate::smtp::scram::ScramOffer;
use std::net::IpAddr;
use std::sync::Arc;

/// A login whose credential was good and is not any more.
const LOGIN_ENDED: Reply =
    Reply::fixed(535, 5, 7, 8, "This login may not be used any more; connect again with another one");

impl Core {
    /// Judges a login at once, or later.
    pub(super) fn authenticate(
        &mut self,
        conn: ConnId,
        client: IpAddr,
        login: Login,
        certificate: Option<Arc<ClientCertificate>>,
        now: Now,
    ) -> Option<Arc<Credential>> {
        let known = self.logins.recognise(&login, &self.directory.load(), client, now);
        self.metrics.logins += u64::from(known.is_some());
        if known.is_none() {
            let shard = self.shard;
            self.report(Report::Login {
                shard,
                question: Box::new(LoginQuestion { conn, client, login, certificate }),
            });
        }
        known
    }

    /// A session has logged in. Its connection counts no more for the rate of connections, which is there for those of whom nothing
    /// is known: an application may open one for each message.
    pub(super) fn logged_in(&self, state: &mut InboundState, credential: Arc<Credential>, now: Now) {
        state.credential = Some(credential);
        if std::mem::take(&mut state.rated) {
            self.settings.connection_rates.give_back(state.client.ip(), now.instant);
        }
    }

    /// What a client of SCRAM is told of a name.
    pub(super) fn scram(&mut self, name: &str, now: Now) -> ScramOffer {
        self.scram.offer(name, &self.directory.load(), now.unix)
    }

    /// The control thread has judged.
    pub(super) fn login_judged(&mut self, judged: LoginVerdict, now: Now) {
        let LoginVerdict { conn, login, verdict } = judged;
        let directory = self.directory.load_full();
        let result = verdict.and_then(|granted| {
            self.logins.remember(&login, &granted, now);
            // What has changed since it was checked may be what made it good.
            let current = directory.credential(&granted.login).filter(|one| one.revision == granted.revision);
            current.cloned().ok_or(AUTH_INVALID)
        });
        match &result {
            Ok(_) => self.metrics.logins += 1,
            Err(_) => self.metrics.failed_logins += 1,
        }
        let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
        let result = result.map(|credential| self.logged_in(&mut inbound.state, credential, now));
        let mut out = Vec::new();
        let step = inbound.session.handle_authenticated(result, now.instant, &mut out);
        self.send(conn, out.into());
        self.resume(&mut inbound.state);
        self.after_step(inbound, step);
    }

    /// The credential of a session as it is now; an error when it may not be used any more.
    pub(super) fn current_credential(
        &self,
        credential: &Credential,
        client: IpAddr,
        now: Now,
    ) -> Result<Arc<Credential>, Reply> {
        let directory = self.directory.load();
        match directory.credential(&credential.login) {
            Some(current) if current.id == credential.id && directory.check(current, client, now.unix).is_ok() => {
                Ok(Arc::clone(current))
            }
            _ => Err(LOGIN_ENDED),
        }
    }
}
