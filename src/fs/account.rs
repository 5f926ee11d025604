//! Accounts: the names of users and groups, as the system's own databases have them.

use nix::unistd::{Gid, Group, Uid, User};

/// The name of the user with this id, if the system knows one.
pub fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// The name of the group with this id, if the system knows one.
pub fn group_name(gid: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}

/// The id of the user with this name, if the system knows one.
pub fn user_id(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// The id of the group with this name, if the system knows one.
pub fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_of_root_and_of_nobody_who_exists() {
        assert_eq!((user_name(0).as_deref(), group_name(0).as_deref()), (Some("root"), Some("root")));
        assert_eq!((user_id("root"), group_id("root")), (Some(0), Some(0)));
        assert_eq!((user_name(3_999_999_999), group_name(3_999_999_999)), (None, None));
        assert_eq!((user_id("no such user"), group_id("no such group")), (None, None));
    }
}
