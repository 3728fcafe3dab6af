//! What a message counts for: the quotas of its tenant and of its credential, as they were when its content began. Counted
//! before it is stored, and given back by itself when it is not taken after all.

use crate::clock::UnixTime;
use crate::policy::identity::{Credential, Tenant};
use crate::policy::quota::{Counted, Quotas};
use crate::policy::usage::{Taken, Usage};
use crate::reply::Reply;
use std::sync::Arc;

/// Whose quotas count: a tenant's and a credential's, which may be none.
type Accounts<'a> = [Option<(&'a Quotas, &'a Usage)>; 2];

/// A message's account.
#[derive(Debug)]
pub struct Charge {
    tenant: Option<Arc<Tenant>>,
    credential: Option<Arc<Credential>>,
    recipients: u32,
    /// When it was counted; none: not yet, or not to be given back any more.
    taken: Option<UnixTime>,
    /// Nothing is to be counted any more.
    done: bool,
}

fn accounts<'a>(tenant: Option<&'a Tenant>, credential: Option<&'a Credential>) -> Accounts<'a> {
    [
        tenant.map(|tenant| (&tenant.quotas, &*tenant.usage.0)),
        credential.map(|credential| (&credential.quotas, &*credential.usage.0)),
    ]
}

/// Whether so many more would be within the quotas of both now.
///
/// # Errors
/// As [`Usage::check`].
pub fn check(
    tenant: Option<&Tenant>,
    credential: Option<&Credential>,
    counted: Counted,
    more: u32,
    now: UnixTime,
) -> Result<(), Reply> {
    let accounts = accounts(tenant, credential);
    accounts.iter().flatten().try_for_each(|(quotas, usage)| usage.check(quotas, counted, more, now))
}

impl Charge {
    /// Of a message to so many recipients; none where nothing is bounded.
    pub fn of(tenant: Option<&Arc<Tenant>>, credential: Option<&Arc<Credential>>, recipients: u32) -> Option<Charge> {
        let tenant = tenant.filter(|tenant| !tenant.quotas.is_empty()).cloned();
        let credential = credential.filter(|credential| !credential.quotas.is_empty()).cloned();
        let bounded = tenant.is_some() || credential.is_some();
        bounded.then_some(Charge { tenant, credential, recipients, taken: None, done: false })
    }

    fn accounts(&self) -> Accounts<'_> {
        accounts(self.tenant.as_deref(), self.credential.as_deref())
    }

    /// The tenant's name and the login, as far as they have quotas.
    pub fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.tenant.as_ref().map(|tenant| &*tenant.name), self.credential.as_ref().map(|one| &*one.login))
    }

    /// Whether it counts already.
    pub fn is_taken(&self) -> bool {
        self.taken.is_some() || self.done
    }

    /// Whether more is to be reserved for it, and nobody has asked for that yet.
    pub fn should_ask(&self) -> bool {
        self.accounts().iter().flatten().fold(false, |ask, (_, usage)| usage.should_ask() | ask)
    }

    /// Counts it for all, or for none.
    ///
    /// # Errors
    /// As [`Usage::check`].
    pub fn take(&mut self, now: UnixTime) -> Result<Taken, Reply> {
        if self.is_taken() {
            return Ok(Taken::Yes);
        }
        let taken = self.count(now)?;
        self.taken = (taken != Taken::Unreserved).then_some(now);
        Ok(taken)
    }

    fn count(&self, now: UnixTime) -> Result<Taken, Reply> {
        let accounts = self.accounts();
        let steps = accounts
            .iter()
            .flatten()
            .flat_map(|account| [(account, Counted::Messages, 1), (account, Counted::Recipients, self.recipients)]);
        let mut taken = Taken::Yes;
        for (done, ((quotas, usage), counted, more)) in steps.clone().enumerate() {
            match usage.take(quotas, counted, more, now) {
                Ok(Taken::Yes) => {}
                Ok(Taken::Low) => taken = Taken::Low,
                other => {
                    steps
                        .take(done)
                        .for_each(|((quotas, usage), counted, more)| usage.undo(quotas, counted, more, now));
                    return other;
                }
            }
        }
        Ok(taken)
    }

    /// The message is taken: what was counted stays so.
    pub fn keep(mut self) {
        (self.taken, self.done) = (None, true);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(taken) = self.taken else { return };
        for (quotas, usage) in self.accounts().iter().flatten() {
            usage.undo(quotas, Counted::Messages, 1, taken);
            usage.undo(quotas, Counted::Recipients, self.recipients, taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::domain::Unverified;

    const NOW: UnixTime = UnixTime::from_millis(1_000);

    fn quotas(messages: &str, recipients: &str) -> Quotas {
        Quotas {
            messages: vec![messages.parse().unwrap()],
            recipients: vec![recipients.parse().unwrap()],
            ..Quotas::default()
        }
    }

    fn tenant(quotas: Quotas) -> Arc<Tenant> {
        Arc::new(Tenant { quotas, ..Tenant::new("a", Unverified::Pass, 1) })
    }

    fn credential(quotas: Quotas) -> Arc<Credential> {
        Arc::new(Credential { quotas, ..Credential::of("app", "a") })
    }

    #[test]
    fn a_message_counts_for_all_or_for_none() {
        let (tenant, credential) =
            (tenant(quotas("2/minute", "10/minute")), credential(quotas("5/minute", "3/minute")));
        let take = |recipients| {
            let mut charge = Charge::of(Some(&tenant), Some(&credential), recipients).unwrap();
            let taken = charge.take(NOW).map_err(|reply| reply.to_string());
            charge.keep();
            taken
        };
        assert!(take(4).is_err(), "the credential's recipients");
        assert!(check(Some(&tenant), Some(&credential), Counted::Recipients, 3, NOW).is_ok());
        assert!(check(Some(&tenant), Some(&credential), Counted::Recipients, 4, NOW).is_err());
        assert!(take(2).is_ok() && take(1).is_ok());
        let refused = take(0).unwrap_err();
        assert!(refused.contains("2 messages"), "{refused}");
        assert!(Charge::of(Some(&self::tenant(Quotas::default())), None, 1).is_none(), "nothing is bounded");
    }

    #[test]
    fn what_is_not_taken_after_all_is_given_back() {
        let tenant = tenant(quotas("1/minute", "5/minute"));
        let take = || {
            let mut charge = Charge::of(Some(&tenant), None, 5).unwrap();
            charge.take(NOW).is_ok().then_some(charge)
        };
        let first = take().unwrap();
        assert!(take().is_none());
        drop(first);
        let mut second = take().unwrap();
        assert_eq!(second.take(NOW), Ok(Taken::Yes), "it counts once");
        second.keep();
        assert!(take().is_none());
    }

    #[test]
    fn one_that_waits_for_room_counts_for_none() {
        let (tenant, credential) = (tenant(quotas("2/minute", "10/minute")), credential(quotas("5/hour", "5/minute")));
        let mut charge = Charge::of(Some(&tenant), Some(&credential), 1).unwrap();
        assert_eq!(charge.take(NOW), Ok(Taken::Unreserved));
        assert!(charge.should_ask() && !charge.should_ask());
        assert!(check(Some(&tenant), None, Counted::Messages, 2, NOW).is_ok(), "the tenant's was undone");
        let record = credential.usage.0.reservation(&credential.quotas, NOW).unwrap();
        credential.usage.0.reserved(&record);
        assert!(matches!(charge.take(NOW), Ok(Taken::Yes | Taken::Low)));
        assert!(check(Some(&tenant), None, Counted::Messages, 2, NOW).is_err());
    }
}
