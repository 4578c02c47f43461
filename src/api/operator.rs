//! Which users are operators: root, and members of a group.
//!
//! **Invariant:** a doubt is a `false`: a user or group that cannot be looked up is nobody's.

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Whether a user is root or a member of the group; `gid` is the group its process runs as, where that is known.
/// Blocks.
pub(super) fn is_operator(uid: u32, gid: Option<u32>, group: &str) -> bool {
    if uid == 0 {
        return true;
    }
    let Ok(Some(group)) = Group::from_name(group) else { return false };
    if gid.map(Gid::from_raw) == Some(group.gid) {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_members_of_the_group_are_operators() {
        assert!(is_operator(0, None, "no-such-group"));
        assert!(!is_operator(65_534, None, "no-such-group"));
        assert!(!is_operator(4_000_000, None, "root"), "a user nobody knows");
        assert!(is_operator(4_000_000, Some(0), "root"), "by the group of its process");
        assert!(!is_operator(65_534, Some(65_534), "root"));
    }
}
