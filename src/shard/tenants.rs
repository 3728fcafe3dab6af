//! The names of tenants, each with a small number that the queue keeps instead.

use crate::queue::TenantId;
use foldhash::HashMap;

/// The tenants that this shard has seen. Beyond [`MAX_TENANTS`](crate::limits::MAX_TENANTS) new names share the first
/// one's place: their mail is delivered, but not kept apart.
#[derive(Debug, Default)]
pub struct Tenants {
    names: Vec<Box<str>>,
    ids: HashMap<Box<str>, TenantId>,
}

impl Tenants {
    /// The number of a name.
    pub fn id_of(&mut self, name: &str) -> TenantId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        if self.names.len() >= crate::limits::MAX_TENANTS {
            return TenantId(0);
        }
        let id = TenantId(self.names.len() as u16);
        self.names.push(name.into());
        self.ids.insert(name.into(), id);
        id
    }

    /// The name of a number that was given out.
    pub fn name(&self, id: TenantId) -> &str {
        self.names.get(usize::from(id.0)).map_or("", |name| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_numbers_and_the_table_is_bounded() {
        let mut tenants = Tenants::default();
        let first = tenants.id_of("default");
        assert_eq!(tenants.id_of("shop"), TenantId(1));
        assert_eq!(tenants.id_of("default"), first);
        assert_eq!(tenants.name(TenantId(1)), "shop");
        for n in 0..2 * crate::limits::MAX_TENANTS {
            tenants.id_of(&n.to_string());
        }
        assert_eq!(tenants.id_of("one more"), first);
    }
}
