//! The archive that a command works on: a store and where in it everything lies.

use std::sync::Arc;

use crate::formats::key::Layout;
use crate::storage::Store;

/// A store and the layout of keys in it.
#[derive(Clone)]
pub struct Archive {
    /// Where the objects are.
    pub store: Arc<dyn Store>,
    /// What they are called.
    pub layout: Layout,
}
