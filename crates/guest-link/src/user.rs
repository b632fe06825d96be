//! Whom a job runs as: the guest's own /etc/passwd and /etc/group tell.

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// The further groups that the user is a member of.
    pub groups: Vec<u32>,
    /// Name and home, of one who is in /etc/passwd.
    pub entry: Option<(String, String)>,
}

/// Finds `NAME`, `UID`, `NAME:GROUP` or `UID:GID` as container images have it. A number needs no entry; a name
/// without one is nobody.
pub fn find(wanted: &str, passwd: &str, group: &str) -> Option<User> {
    let (user, of_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = lines.find(|fields| fields.len() >= 6 && (fields[0] == user || fields[2] == user));
    let (uid, first_gid) = match &entry {
        Some(fields) => (fields[2].parse().ok()?, fields[3].parse().ok()?),
        None => (user.parse().ok()?, 0),
    };
    let groups: Vec<_> = group.lines().map(|line| line.split(':').collect::<Vec<_>>()).collect();
    let gid = match of_group {
        None => first_gid,
        Some(name) => match groups.iter().find(|fields| fields.len() >= 3 && fields[0] == name) {
            Some(fields) => fields[2].parse().ok()?,
            None => name.parse().ok()?,
        },
    };
    let entry = entry.map(|fields| (fields[0].to_string(), fields[5].to_string()));
    let is_member = |fields: &&Vec<&str>| {
        let members = fields.get(3).into_iter().flat_map(|members| members.split(','));
        entry.as_ref().is_some_and(|(name, _)| members.into_iter().any(|member| member == name))
    };
    let members = groups.iter().filter(is_member).filter_map(|fields| fields.get(2)?.parse().ok());
    let groups = if of_group.is_some() { Vec::new() } else { members.collect() };
    Some(User { uid, gid, groups, entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
    const GROUP: &str = "root:x:0:\nssl-cert:x:103:postgres,other\npostgres:x:104:\n";

    #[test]
    fn a_name_has_its_groups_and_its_home() {
        let user = find("postgres", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, &user.groups[..]), (101, 104, &[103][..]));
        assert_eq!(user.entry, Some(("postgres".into(), "/var/lib/postgresql".into())));
        assert_eq!(find("101", PASSWD, GROUP), Some(user));
    }

    #[test]
    fn a_group_may_be_named_and_numbers_need_no_entry() {
        assert_eq!(find("postgres:ssl-cert", PASSWD, GROUP).unwrap().gid, 103);
        let user = find("1234:5678", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.entry), (1234, 5678, None));
        assert_eq!(find("1234", PASSWD, GROUP).unwrap().gid, 0);
    }

    #[test]
    fn nobody_is_found_by_a_name_that_is_not_there() {
        for wanted in ["nginx", "", "root:nginx", ":", "-1"] {
            assert_eq!(find(wanted, PASSWD, GROUP), None, "{wanted}");
        }
        assert_eq!(find("root", "", ""), None);
    }
}
