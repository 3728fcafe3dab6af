//! What operators ask of the identities, and what they are answered: the admin interface's words, as JSON.

use crate::policy::domain::Unverified;
use crate::policy::identity::{CertificateRule, Credential, SenderRule, Tenant};
use crate::policy::quota::Quotas;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IdentityRequest {
    /// All tenants.
    Tenants,
    /// A new tenant.
    AddTenant {
        /// Its name.
        name: String,
        /// What becomes of its mail from domains that are not verified.
        unverified: Unverified,
    },
    /// Changes what is given.
    SetTenant {
        /// Its name.
        name: String,
        /// Whether it may submit.
        enabled: Option<bool>,
        /// What becomes of its mail from domains that are not verified.
        unverified: Option<Unverified>,
    },
    /// No such tenant any more, nor its credentials.
    RemoveTenant {
        /// Its name.
        name: String,
    },
    /// All credentials, or a tenant's.
    Credentials {
        /// Whose.
        tenant: Option<String>,
    },
    /// A new credential; its secret is in the answer.
    AddCredential {
        /// Whose.
        tenant: String,
        /// The name to log in with; one is made when left out.
        login: Option<String>,
        /// What it is for.
        #[serde(default)]
        label: String,
        /// For how long, in milliseconds; for ever when left out.
        lifetime_ms: Option<u64>,
        /// From where it may log in.
        #[serde(default)]
        networks: Vec<IpNet>,
        /// Which senders it may use.
        #[serde(default)]
        senders: Vec<SenderRule>,
        /// With which certificates it may log in without its secret.
        #[serde(default)]
        certificates: Vec<CertificateRule>,
        /// Whether it may send as other tenants.
        #[serde(default)]
        any_tenant: bool,
    },
    /// A new secret for a credential, in the answer; the old one goes on for a while.
    RotateCredential {
        /// Which.
        login: String,
        /// For how long the old secret is taken, in milliseconds.
        overlap_ms: u64,
    },
    /// How much a tenant may send.
    SetTenantQuotas {
        /// Which.
        name: String,
        /// In place of those it had.
        quotas: Quotas,
    },
    /// How much may be sent with a credential.
    SetCredentialQuotas {
        /// Which.
        login: String,
        /// In place of those it had.
        quotas: Quotas,
    },
    /// Whether a credential may log in.
    SetCredential {
        /// Which.
        login: String,
        /// Whether it may.
        enabled: bool,
    },
    /// No such credential any more.
    RemoveCredential {
        /// Which.
        login: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityReply {
    /// By name.
    Tenants(Vec<Tenant>),
    /// By login.
    Credentials(Vec<CredentialView>),
    /// A credential's secret: it is shown this once.
    Secret {
        /// Its login.
        login: String,
        /// The password.
        secret: String,
    },
    /// It is so.
    Done {},
}

/// A credential as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialView {
    /// The name to log in with.
    pub login: String,
    /// Whose it is.
    pub tenant: String,
    /// What it is for.
    pub label: String,
    /// Whether it may log in.
    pub enabled: bool,
    /// When it was added, milliseconds since 1970.
    pub created_ms: u64,
    /// Until when it may log in.
    pub expires_ms: Option<u64>,
    /// From where.
    pub networks: Vec<IpNet>,
    /// With which senders.
    pub senders: Vec<SenderRule>,
    /// With which certificates it may log in.
    #[serde(default)]
    pub certificates: Vec<CertificateRule>,
    /// Whether it may send as other tenants.
    #[serde(default)]
    pub any_tenant: bool,
    /// How much may be sent with it.
    #[serde(default)]
    pub quotas: Quotas,
    /// Until when the secret before the present one is taken.
    pub old_secret_until_ms: Option<u64>,
}

impl CredentialView {
    /// Of this one.
    pub fn of(credential: &Credential) -> CredentialView {
        CredentialView {
            login: credential.login.to_string(),
            tenant: credential.tenant.to_string(),
            label: credential.label.to_string(),
            enabled: credential.enabled,
            created_ms: credential.created_ms,
            expires_ms: credential.expires_ms,
            networks: credential.networks.clone(),
            senders: credential.senders.clone(),
            certificates: credential.certificates.clone(),
            any_tenant: credential.any_tenant,
            quotas: credential.quotas.clone(),
            old_secret_until_ms: credential.secrets.get(1).and_then(|secret| secret.until_ms),
        }
    }
}
