//! Whose segments a spool holds: they are good for one archive, one cluster, one configuration, and until the machine
//! starts again, since nothing in a spool is fsynced.

use std::fs;

use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::formats::hex::hex;

/// Where the kernel says which of its lives this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a caller wants segments from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The whole address of the archive's WAL directory, and the server's where it is not the usual one.
    pub archive: String,
    /// The cluster whose segments they are.
    pub system_identifier: u64,
    /// A digest of everything in the environment and the arguments that says how to reach the archive, credentials
    /// included, and of the program itself.
    pub configuration: [u8; 32],
}

/// What lies in the spool to say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    boot_id: String,
    archive: String,
    system_identifier: u64,
    /// Makes the digest below useless for guessing credentials, and is part of the socket's name.
    salt: String,
    configuration: String,
}

impl Stamp {
    /// A new one, for a prefetcher that works for `origin`.
    pub fn new(origin: &Origin) -> Self {
        Self::salted(origin, hex(&rand::rng().random::<[u8; 16]>()))
    }

    /// Whether segments under this stamp are what a caller with `origin` would fetch itself.
    pub fn fits(&self, origin: &Origin) -> bool {
        *self == Self::salted(origin, self.salt.clone())
    }

    /// What no other stamp has.
    pub(super) fn salt(&self) -> &str {
        &self.salt
    }

    fn salted(origin: &Origin, salt: String) -> Self {
        let mut digest = Sha256::new();
        digest.update(salt.as_bytes());
        digest.update(origin.configuration);
        Self {
            boot_id: fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned(),
            archive: origin.archive.clone(),
            system_identifier: origin.system_identifier,
            salt,
            configuration: hex(&digest.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_is_a_misfit() {
        let origin = Origin { archive: "s3://b/p/wal_005/".into(), system_identifier: 7, configuration: [1; 32] };
        let stamp = Stamp::new(&origin);
        assert!(stamp.fits(&origin));
        assert_ne!(Stamp::new(&origin), stamp, "salted anew each time");
        for other in [
            Origin { archive: "s3://b/q/wal_005/".into(), ..origin.clone() },
            Origin { system_identifier: 8, ..origin.clone() },
            Origin { configuration: [2; 32], ..origin.clone() },
        ] {
            assert!(!stamp.fits(&other), "{other:?}");
        }
        assert!(!Stamp { boot_id: "another life".into(), ..stamp.clone() }.fits(&origin));
        let read: Stamp = serde_json::from_str(&serde_json::to_string(&stamp).unwrap()).unwrap();
        assert!(read.fits(&origin));
    }
}
