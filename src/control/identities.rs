//! Where identities are kept: an embedded database in one file, changed by operators' requests and read by all shards as one
//! snapshot, which is exchanged as soon as a change is on disk.
//!
//! Secrets are kept as Argon2id hashes alone and shown once, when they are made. Everything here may block (disk, password
//! hash) and runs beside the control thread's loop. Errors say what to do; a change that fails changes nothing.

use super::domains::{DOMAINS, table_key};
use super::identity_requests::{CredentialView, IdentityReply, IdentityRequest};
use crate::clock::UnixTime;
use crate::io::secret_file;
use crate::limits::{CREDENTIAL_FILE_OCTETS_MAX, LOGIN_OCTETS_MAX};
use crate::policy::domain::Unverified;
use crate::policy::identity::{Credential, Directory, SECRETS_MAX, SecretHash, Tenant};
use crate::policy::quota::Quotas;
use crate::policy::usage::SharedUsage;
use crate::smtp::scram::{ITERATIONS, ScramKeys};
use arc_swap::ArcSwap;
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The name of the database's file in the spool directory.
pub const FILE_NAME: &str = "identities.redb";

const TENANTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tenants");
const CREDENTIALS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("credentials");
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");

/// Octets that the database may keep in memory: all of it is in the snapshot anyway.
const CACHE_OCTETS: usize = 1 << 20;

/// Octets of a credential's label.
const LABEL_OCTETS_MAX: usize = 128;

/// The tenant of listeners and credentials that name none.
pub const DEFAULT_TENANT: &str = "default";

/// The snapshot that shards read.
pub type SharedDirectory = Arc<ArcSwap<Directory>>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The database.
    #[error("the database of identities {file}: {cause}")]
    Database {
        /// Its file.
        file: String,
        /// Why.
        cause: redb::Error,
    },
    /// A file.
    #[error("{file}: {cause}")]
    File {
        /// Its path.
        file: String,
        /// Why.
        cause: std::io::Error,
    },
    /// An entry that cannot be read.
    #[error("the database of identities has an entry `{0}` that this version cannot read")]
    Entry(String),
    /// No random octets, or no hash.
    #[error("no secret can be made: {0}")]
    Secret(String),
    /// It is not there.
    #[error("there is no {0} `{1}`")]
    Absent(&'static str, String),
    /// It is there already.
    #[error("there is a {0} `{1}` already")]
    Present(&'static str, String),
    /// It cannot be.
    #[error("{0}")]
    Wrong(String),
}

/// The identities.
pub struct Identities {
    /// None after an error: then the next use opens it anew, since the database takes nothing more after an error of the disk.
    database: Mutex<Option<Database>>,
    file: PathBuf,
    directory: SharedDirectory,
    /// One change at a time.
    changing: Mutex<()>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Identities {
    /// Those of this spool directory; the file is made, for its owner alone, when there is none.
    ///
    /// # Errors
    /// When it cannot be made or read, or others may read it.
    pub fn open(spool: &Path) -> Result<Identities, IdentityError> {
        let file = spool.join(FILE_NAME);
        let wrong = |cause: std::io::Error| IdentityError::File { file: file.display().to_string(), cause };
        let opened =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file);
        let opened = opened.map_err(wrong)?;
        let mode = opened.metadata().map_err(wrong)?.permissions().mode();
        if mode & 0o077 != 0 {
            let text = format!("{} may be read by others (mode {:o}): chmod 600 {0}", file.display(), mode & 0o777);
            return Err(IdentityError::Wrong(text));
        }
        let identities = Identities {
            database: Mutex::default(),
            file,
            directory: SharedDirectory::default(),
            changing: Mutex::default(),
        };
        // Nothing is written: a start must not fail on a full disk.
        identities.publish()?;
        identities.restore_usages()?;
        Ok(identities)
    }

    /// What shards read.
    pub fn directory(&self) -> SharedDirectory {
        Arc::clone(&self.directory)
    }

    pub(super) fn one_change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is asked. Blocks for the disk, and for a password hash where a secret is made.
    pub fn handle(&self, request: IdentityRequest, now: UnixTime) -> Result<IdentityReply, IdentityError> {
        let _one = self.one_change();
        let now = now.as_millis();
        match request {
            IdentityRequest::Tenants => {
                let directory = self.directory.load();
                let mut tenants: Vec<Tenant> = directory.tenants().map(|tenant| Tenant::clone(tenant)).collect();
                tenants.sort_by(|one, other| one.name.cmp(&other.name));
                return Ok(IdentityReply::Tenants(tenants));
            }
            IdentityRequest::Credentials { tenant } => {
                let directory = self.directory.load();
                let wanted = directory.credentials().filter(|one| tenant.as_deref().is_none_or(|t| *one.tenant == *t));
                let mut credentials: Vec<CredentialView> = wanted.map(|one| CredentialView::of(one)).collect();
                credentials.sort_by(|one, other| one.login.cmp(&other.login));
                return Ok(IdentityReply::Credentials(credentials));
            }
            IdentityRequest::AddTenant { name, unverified } => self.add_tenant(&name, unverified, now)?,
            IdentityRequest::SetTenant { name, enabled, unverified } => {
                let mut tenant = self.tenant(&name)?;
                tenant.enabled = enabled.unwrap_or(tenant.enabled);
                tenant.unverified = unverified.unwrap_or(tenant.unverified);
                self.put(TENANTS, &name, &tenant)?;
            }
            IdentityRequest::RemoveTenant { name } => self.remove_tenant(&name)?,
            IdentityRequest::AddCredential {
                tenant,
                login,
                label,
                lifetime_ms,
                networks,
                senders,
                certificates,
                any_tenant,
            } => {
                let login = login.map_or_else(|| made_login(&tenant), Ok)?;
                self.tenant(&tenant)?;
                check_name("login", &login, LOGIN_OCTETS_MAX)?;
                check_label(&label)?;
                if self.directory.load().credential(&login).is_some() {
                    return Err(IdentityError::Present("credential", login));
                }
                let (secret, kept) = made_secret(None)?;
                let credential = Credential {
                    id: random_u64()?,
                    login: login.as_str().into(),
                    tenant: tenant.into(),
                    label: label.into(),
                    enabled: true,
                    created_ms: now,
                    expires_ms: lifetime_ms.map(|lifetime| now.saturating_add(lifetime)),
                    networks,
                    senders,
                    certificates,
                    secrets: vec![kept],
                    any_tenant,
                    quotas: Quotas::default(),
                    usage: SharedUsage::default(),
                    revision: random_u64()?,
                };
                self.put(CREDENTIALS, &login, &credential)?;
                self.publish()?;
                return Ok(IdentityReply::Secret { login, secret });
            }
            IdentityRequest::RotateCredential { login, overlap_ms } => {
                let mut credential = self.credential(&login)?;
                credential.secrets.retain(|old| old.until_ms.is_none());
                credential.secrets.iter_mut().for_each(|old| old.until_ms = Some(now.saturating_add(overlap_ms)));
                if overlap_ms == 0 {
                    credential.secrets.clear();
                }
                // SCRAM tells a client one salt: with the same one both secrets of a rotation can prove themselves.
                let (secret, kept) = made_secret(credential.secrets.first().and_then(|old| old.scram.as_ref()))?;
                credential.secrets.insert(0, kept);
                credential.revision = random_u64()?;
                self.put(CREDENTIALS, &login, &credential)?;
                self.publish()?;
                return Ok(IdentityReply::Secret { login, secret });
            }
            IdentityRequest::SetTenantQuotas { quotas, .. } | IdentityRequest::SetCredentialQuotas { quotas, .. }
                if !quotas.are_clear() =>
            {
                return Err(IdentityError::Wrong(format!("two quotas for one length of time: {quotas}")));
            }
            IdentityRequest::SetTenantQuotas { name, quotas } => {
                let tenant = Tenant { quotas, ..self.tenant(&name)? };
                self.put(TENANTS, &name, &tenant)?;
            }
            IdentityRequest::SetCredentialQuotas { login, quotas } => {
                let credential = Credential { quotas, ..self.credential(&login)? };
                self.put(CREDENTIALS, &login, &credential)?;
            }
            IdentityRequest::SetCredential { login, enabled } => {
                let credential = Credential { enabled, revision: random_u64()?, ..self.credential(&login)? };
                self.put(CREDENTIALS, &login, &credential)?;
            }
            IdentityRequest::RemoveCredential { login } => {
                self.credential(&login)?;
                self.change(|tables| {
                    tables.open_table(CREDENTIALS)?.remove(login.as_str()).map(|_| ()).map_err(Into::into)
                })?;
            }
        }
        self.publish()?;
        Ok(IdentityReply::Done {})
    }

    /// Makes each line `login:password` of a file a credential of the tenant "default", which is made when it is not there.
    /// A login that there is gets this password and keeps everything else. Empty lines and those with `#` are passed over.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is none; says which.
    pub fn take_credentials(&self, file: &Path, now: UnixTime) -> Result<(), IdentityError> {
        let text = secret_file::read_text(file, CREDENTIAL_FILE_OCTETS_MAX).map_err(IdentityError::Wrong)?;
        if self.directory.load().tenant(DEFAULT_TENANT).is_none() {
            self.handle(IdentityRequest::AddTenant { name: DEFAULT_TENANT.into(), unverified: Unverified::Pass }, now)?;
        }
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let known = line.split_once(':').filter(|(_, password)| (1..=LOGIN_OCTETS_MAX).contains(&password.len()));
            let set = match known {
                Some((login, password)) => self.set_password(login, password, now),
                None => Err(IdentityError::Wrong("expected login:password".into())),
            };
            // The line itself is not shown: it may hold a password.
            set.map_err(|error| match error {
                IdentityError::Wrong(text) => {
                    IdentityError::Wrong(format!("{}, line {}: {text}", file.display(), number + 1))
                }
                other => other,
            })?;
        }
        self.publish()
    }

    /// The login and password of a first credential, made when there is no tenant yet; None when there is one.
    ///
    /// # Errors
    /// Those of a change.
    pub fn first_login(&self, now: UnixTime) -> Result<Option<(String, String)>, IdentityError> {
        if self.directory.load().tenants().next().is_some() {
            return Ok(None);
        }
        self.handle(IdentityRequest::AddTenant { name: DEFAULT_TENANT.into(), unverified: Unverified::Pass }, now)?;
        let request = IdentityRequest::AddCredential {
            tenant: DEFAULT_TENANT.into(),
            login: Some("demo".into()),
            label: "made at the first start".into(),
            lifetime_ms: None,
            networks: Vec::new(),
            senders: Vec::new(),
            certificates: Vec::new(),
            any_tenant: false,
        };
        match self.handle(request, now)? {
            IdentityReply::Secret { login, secret } => Ok(Some((login, secret))),
            _ => Ok(None),
        }
    }

    fn set_password(&self, login: &str, password: &str, now: UnixTime) -> Result<(), IdentityError> {
        check_name("login", login, LOGIN_OCTETS_MAX)?;
        let known = self.credential(login).ok();
        if known.as_ref().is_some_and(|known| verify(&known.secrets, password.as_bytes(), now)) {
            return Ok(());
        }
        let secrets = vec![kept(password, None)?];
        let new = Credential {
            id: random_u64()?,
            login: login.into(),
            tenant: DEFAULT_TENANT.into(),
            label: "".into(),
            enabled: true,
            created_ms: now.as_millis(),
            expires_ms: None,
            networks: Vec::new(),
            senders: Vec::new(),
            certificates: Vec::new(),
            secrets: Vec::new(),
            any_tenant: false,
            quotas: Quotas::default(),
            usage: SharedUsage::default(),
            revision: 0,
        };
        let credential = Credential { secrets, revision: random_u64()?, ..known.unwrap_or(new) };
        self.put(CREDENTIALS, login, &credential)
    }

    fn add_tenant(&self, name: &str, unverified: Unverified, now: u64) -> Result<(), IdentityError> {
        check_name("tenant", name, 64)?;
        if self.directory.load().tenant(name).is_some() {
            return Err(IdentityError::Present("tenant", name.into()));
        }
        self.put(TENANTS, name, &Tenant::new(name, unverified, now))
    }

    fn remove_tenant(&self, name: &str) -> Result<(), IdentityError> {
        self.tenant(name)?;
        let directory = self.directory.load();
        let logins: Vec<Box<str>> =
            directory.credentials().filter(|one| &*one.tenant == name).map(|one| one.login.clone()).collect();
        self.change(|tables| {
            tables.open_table(TENANTS)?.remove(name)?;
            let mut credentials = tables.open_table(CREDENTIALS)?;
            for login in &logins {
                credentials.remove(&**login)?;
            }
            let mut domains = tables.open_table(DOMAINS)?;
            for domain in directory.domains().filter(|domain| &*domain.tenant == name) {
                domains.remove(table_key(domain).as_str())?;
            }
            Ok(())
        })
    }

    pub(super) fn tenant(&self, name: &str) -> Result<Tenant, IdentityError> {
        let directory = self.directory.load();
        let tenant = directory.tenant(name).map(|tenant| Tenant::clone(tenant));
        tenant.ok_or_else(|| IdentityError::Absent("tenant", name.into()))
    }

    fn credential(&self, login: &str) -> Result<Credential, IdentityError> {
        let directory = self.directory.load();
        let credential = directory.credential(login).map(|one| Credential::clone(one));
        credential.ok_or_else(|| IdentityError::Absent("credential", login.into()))
    }

    /// The key with which salts are made for names that nobody has: made once, and kept.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn salt_key(&self) -> Result<[u8; 32], IdentityError> {
        if let Some(kept) = self.read::<[u8; 32]>(KEYS)?.first() {
            return Ok(*kept);
        }
        let key = random()?;
        self.put(KEYS, "salts", &key)?;
        Ok(key)
    }

    pub(super) fn put<T: Serialize>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
        key: &str,
        value: &T,
    ) -> Result<(), IdentityError> {
        let json = serde_json::to_vec(value).map_err(|_| IdentityError::Entry(key.into()))?;
        self.change(|tables| tables.open_table(table)?.insert(key, json.as_slice()).map(|_| ()).map_err(Into::into))
    }

    /// One durable change, whole or not at all.
    pub(super) fn change(
        &self,
        act: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), IdentityError> {
        self.with_database(|database| {
            let transaction = database.begin_write()?;
            act(&transaction)?;
            Ok(transaction.commit()?)
        })
    }

    fn with_database<T>(&self, act: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, IdentityError> {
        let mut kept = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || -> Result<Database, redb::Error> {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&self.file)?;
            Ok(redb::Builder::new().set_cache_size(CACHE_OCTETS).create_with_backend(FileBackend::new(file)?)?)
        };
        let result = match kept.take().map_or_else(open, Ok) {
            Ok(database) => act(&database).inspect(|_| *kept = Some(database)),
            Err(error) => Err(error),
        };
        result.map_err(|cause| IdentityError::Database { file: self.file.display().to_string(), cause })
    }

    /// Shards read what is on disk now.
    pub(super) fn publish(&self) -> Result<(), IdentityError> {
        let directory = Directory::new(self.read(TENANTS)?, self.read(CREDENTIALS)?);
        let directory = directory.with_domains(self.read(DOMAINS)?, &self.directory.load());
        let directory = directory.with_usage_of(&self.directory.load());
        self.directory.store(Arc::new(directory));
        Ok(())
    }

    fn read<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
    ) -> Result<Vec<T>, IdentityError> {
        Ok(self.entries(table)?.into_iter().map(|(_, value)| value).collect())
    }

    /// All of a table, by key.
    pub(super) fn entries<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
    ) -> Result<Vec<(String, T)>, IdentityError> {
        let entries = self.with_database(|database| {
            let table = match database.begin_read()?.open_table(table) {
                // Nothing was ever put into it.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let entries = table.iter()?;
            entries
                .map(|entry| entry.map(|(key, value)| (key.value().to_owned(), value.value().to_vec())))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Into::into)
        })?;
        let read = |(key, value): (String, Vec<u8>)| match serde_json::from_slice(&value) {
            Ok(value) => Ok((key, value)),
            Err(_) => Err(IdentityError::Entry(key)),
        };
        entries.into_iter().map(read).collect()
    }
}

pub(super) fn check_name(what: &str, name: &str, most: usize) -> Result<(), IdentityError> {
    if (1..=most).contains(&name.len()) && name.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Ok(());
    }
    Err(IdentityError::Wrong(format!("`{name}` is no name for a {what}: 1 to {most} ASCII characters without spaces")))
}

fn check_label(label: &str) -> Result<(), IdentityError> {
    if label.len() <= LABEL_OCTETS_MAX && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(IdentityError::Wrong(format!("a label has at most {LABEL_OCTETS_MAX} octets and no control characters")))
}

/// Random octets of the system.
///
/// # Errors
/// When it has none.
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut octets = [0; N];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| IdentityError::Secret("no random octets".into()))?;
    Ok(octets)
}

pub(super) fn random_u64() -> Result<u64, IdentityError> {
    random().map(u64::from_le_bytes)
}

fn made_login(tenant: &str) -> Result<String, IdentityError> {
    Ok(format!("{tenant}-{:08x}", random_u64()? as u32))
}

/// A text of more than 191 random bits that a command line takes as it is: it does not begin like an option.
fn secret_text() -> Result<String, IdentityError> {
    loop {
        let text = URL_SAFE_NO_PAD.encode(random::<24>()?);
        if text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Ok(text);
        }
    }
}

/// A secret and what is kept of it; with the salt of an older one, if there is one.
fn made_secret(older: Option<&ScramKeys>) -> Result<(String, SecretHash), IdentityError> {
    let secret = secret_text()?;
    let kept = kept(&secret, older)?;
    Ok((secret, kept))
}

/// What is kept of a secret.
fn kept(secret: &str, older: Option<&ScramKeys>) -> Result<SecretHash, IdentityError> {
    let (salt, iterations) = match older {
        Some(older) => (older.salt, older.iterations),
        None => (random()?, ITERATIONS),
    };
    let scram = Some(ScramKeys::derive(secret.as_bytes(), salt, iterations));
    Ok(SecretHash { phc: hash(secret)?, until_ms: None, scram })
}

fn hash(secret: &str) -> Result<Box<str>, IdentityError> {
    let hash = Argon2::default().hash_password(secret.as_bytes());
    hash.map(|hash| hash.to_string().into()).map_err(|error| IdentityError::Secret(error.to_string()))
}

/// A hash of the usual cost that no password has.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ib2Q$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Whether a password is that of one of these secrets which are taken at this time. Blocks for two hashes, some 30 ms,
/// however many secrets there are, so that nobody learns from the time which logins exist or are being rotated.
pub fn verify(secrets: &[SecretHash], password: &[u8], now: UnixTime) -> bool {
    let taken = secrets.iter().filter(|secret| secret.is_taken(now));
    let hashes = taken.map(|secret| &*secret.phc).chain(std::iter::repeat(NOBODY)).take(SECRETS_MAX);
    hashes.fold(false, |good, phc| {
        let fits = PasswordHash::new(phc);
        good | fits.is_ok_and(|hash| {
            HASHES.fetch_add(1, Ordering::Relaxed);
            Argon2::default().verify_password(password, &hash).is_ok()
        })
    })
}

/// Hashes that [`verify`] has computed in this process.
static HASHES: AtomicU64 = AtomicU64::new(0);

/// How many password hashes were computed to check logins.
pub fn hashes_computed() -> u64 {
    HASHES.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_millis(1_000);

    fn directory() -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("identities-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn secret(reply: IdentityReply) -> (String, String) {
        match reply {
            IdentityReply::Secret { login, secret } => (login, secret),
            other => panic!("{other:?}"),
        }
    }

    fn add(identities: &Identities, login: &str) -> (String, String) {
        let request = IdentityRequest::AddCredential {
            tenant: "a".into(),
            login: Some(login.into()),
            label: String::new(),
            lifetime_ms: None,
            networks: Vec::new(),
            senders: Vec::new(),
            certificates: Vec::new(),
            any_tenant: false,
        };
        secret(identities.handle(request, NOW).unwrap())
    }

    #[test]
    fn no_secret_begins_like_an_option() {
        for _ in 0..1_000 {
            let secret = secret_text().unwrap();
            assert!(secret.len() == 32 && !secret.starts_with(['-', '_']), "{secret}");
        }
    }

    #[test]
    fn changes_are_kept_and_seen_at_once() {
        let path = directory();
        let identities = Identities::open(&path).unwrap();
        let shared = identities.directory();
        identities.handle(IdentityRequest::AddTenant { name: "a".into(), unverified: Unverified::Pass }, NOW).unwrap();
        let (login, password) = add(&identities, "app");
        let credential = Arc::clone(shared.load().credential(&login).unwrap());
        assert!(verify(&credential.secrets, password.as_bytes(), NOW));
        assert!(!verify(&credential.secrets, b"wrong", NOW) && !verify(&[], password.as_bytes(), NOW));
        assert!(!format!("{credential:?}").contains("argon2"), "hashes are not shown");
        let salt_key = identities.salt_key().unwrap();
        drop(identities);
        let text = std::fs::read(path.join(FILE_NAME)).unwrap();
        assert_eq!(memchr::memmem::find(&text, password.as_bytes()), None, "the secret is not kept");

        let identities = Identities::open(&path).unwrap();
        assert_eq!(identities.salt_key().unwrap(), salt_key);
        assert_eq!(identities.directory().load().credential("app"), Some(&credential));
        let rotate = IdentityRequest::RotateCredential { login: "app".into(), overlap_ms: 500 };
        let (_, newer) = secret(identities.handle(rotate, NOW).unwrap());
        let rotated = Arc::clone(identities.directory().load().credential("app").unwrap());
        assert_ne!(rotated.revision, credential.revision);
        let keys = rotated.secrets.iter().map(|secret| secret.scram.as_ref().unwrap()).collect::<Vec<_>>();
        assert!(keys[0].salt == keys[1].salt && keys[0].stored != keys[1].stored, "one salt for both of a rotation");
        let later = UnixTime::from_millis(1_500);
        assert!(verify(&rotated.secrets, password.as_bytes(), NOW) && verify(&rotated.secrets, newer.as_bytes(), NOW));
        assert!(
            !verify(&rotated.secrets, password.as_bytes(), later) && verify(&rotated.secrets, newer.as_bytes(), later)
        );

        identities
            .handle(IdentityRequest::SetTenant { name: "a".into(), enabled: Some(false), unverified: None }, NOW)
            .unwrap();
        assert!(!identities.directory().load().tenant("a").unwrap().enabled);
        identities.handle(IdentityRequest::RemoveTenant { name: "a".into() }, NOW).unwrap();
        assert_eq!(**identities.directory().load(), Directory::default());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn an_error_of_the_disk_ends_with_its_cause() {
        let path = directory();
        let identities = Identities::open(&path).unwrap();
        let failed = identities.change(|tables| {
            tables.open_table(TENANTS)?.insert("half", b"{}".as_slice())?;
            Err(redb::Error::Io(std::io::Error::from_raw_os_error(libc::ENOSPC)))
        });
        assert!(failed.unwrap_err().to_string().contains("No space left"));
        assert!(identities.database.lock().unwrap().is_none(), "it is opened anew");
        identities.handle(IdentityRequest::AddTenant { name: "a".into(), unverified: Unverified::Pass }, NOW).unwrap();
        assert_eq!(identities.directory().load().tenants().count(), 1);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_file_of_credentials_is_taken_or_its_line_named() {
        let path = directory();
        let identities = Identities::open(&path).unwrap();
        let file = path.join("logins");
        let take = |text: &str| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
            identities.take_credentials(&file, NOW).map_err(|error| error.to_string())
        };
        assert_eq!(take("# two\n\napp:secret\nother:a:b\n"), Ok(()));
        let credential = Arc::clone(identities.directory().load().credential("other").unwrap());
        assert!(verify(&credential.secrets, b"a:b", NOW));
        assert_eq!(take("other:a:b\n"), Ok(()));
        assert_eq!(identities.directory().load().credential("other"), Some(&credential), "the same changes nothing");
        for (text, wrong) in [
            ("app:x\nsecret\n", "line 2: expected"),
            ("a b:c\n", "line 1: `a b` is no name"),
            ("a:\n", "line 1: expected"),
        ] {
            let error = take(text).unwrap_err();
            assert!(error.contains(wrong) && !error.contains("secret"), "{error}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let shown = identities.take_credentials(&file, NOW).unwrap_err().to_string();
        assert!(shown.contains("mode 644") && shown.contains("chmod 600"), "{shown}");
        let absent = identities.take_credentials(&path.join("absent"), NOW).unwrap_err().to_string();
        assert!(absent.contains("absent: No such file"), "{absent}");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_cannot_be_is_told() {
        let path = directory();
        let identities = Identities::open(&path).unwrap();
        let error = |request| identities.handle(request, NOW).unwrap_err().to_string();
        assert!(
            error(IdentityRequest::AddTenant { name: "a b".into(), unverified: Unverified::Pass })
                .contains("no name for a tenant")
        );
        let labelled = |label: &str| IdentityRequest::AddCredential {
            tenant: "a".into(),
            login: None,
            label: label.into(),
            lifetime_ms: None,
            networks: Vec::new(),
            senders: Vec::new(),
            certificates: Vec::new(),
            any_tenant: false,
        };
        assert!(error(labelled("x")).contains("no tenant `a`"));
        assert!(error(IdentityRequest::RemoveCredential { login: "x".into() }).contains("no credential `x`"));
        identities.handle(IdentityRequest::AddTenant { name: "a".into(), unverified: Unverified::Pass }, NOW).unwrap();
        assert!(
            error(IdentityRequest::AddTenant { name: "a".into(), unverified: Unverified::Pass }).contains("already")
        );
        for label in ["\u{1b}[2J", &"x".repeat(LABEL_OCTETS_MAX + 1)] {
            assert!(error(labelled(label)).contains("a label has"));
        }
        drop(identities);
        let file = path.join(FILE_NAME);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Identities::open(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_hash_of_nobody_costs_as_much_as_a_real_one() {
        let parse = |phc: &str| PasswordHash::new(phc).unwrap().params.to_string();
        let (_, kept) = made_secret(None).unwrap();
        assert_eq!(parse(&kept.phc), parse(NOBODY));
    }
}
