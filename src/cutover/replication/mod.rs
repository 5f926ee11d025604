//! Logical replication from one server to another, piece by piece. Each looks at the catalogue first, so that it can be made and
//! dropped again and again; each goes either way, as its [`link::Link`] says.

pub mod identity;
pub mod link;
pub mod publication;
pub mod role;
pub mod slot;
pub mod subscription;
pub mod workers;
