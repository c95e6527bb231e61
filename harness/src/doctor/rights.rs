//! Examines what this user may do.

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use crate::process::cgroup;
use crate::run::update::mounts;

/// Descriptors that are ample for a run with a few cases at a time.
const DESCRIPTORS: u64 = 1024;

/// Examines user, cgroup and limits.
pub fn examine() -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    vec![of_user(root, mounts::unmet()), of_cgroup(cgroup::unmet()), of_descriptors(descriptors)]
}

fn of_user(root: bool, no_mounts: Option<String>) -> Finding {
    match (root, no_mounts) {
        (true, None) => Finding::good("user", "root"),
        (true, Some(why)) => Finding::limited(
            "user",
            format!("root, but {why}"),
            "give the container the capability (--cap-add SYS_ADMIN), or run it privileged",
        ),
        (false, _) => Finding::limited(
            "user",
            "not root: no mounts, and RAM is compared by content and inode, not by page frame",
            "run as root (sudo, or a privileged container) to have both",
        ),
    }
}

fn of_cgroup(unmet: Option<String>) -> Finding {
    match unmet {
        None => Finding::good("memory cgroup", "can be made"),
        Some(why) => Finding::limited(
            "memory cgroup",
            why,
            "be root with a writable cgroup file system; under systemd: systemd-run --scope -p Delegate=yes cpr-harness …",
        ),
    }
}

fn of_descriptors(soft: u64) -> Finding {
    let seen = format!("{soft} descriptors at a time");
    match soft < DESCRIPTORS {
        true => Finding::limited("limits", seen, format!("ulimit -n {DESCRIPTORS}")),
        false => Finding::good("limits", seen),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_missing_right_is_a_limit_with_advice() {
        let no = || Some("no".to_owned());
        for finding in
            [of_user(false, no()), of_user(true, no()), of_cgroup(no()), of_descriptors(256)]
        {
            assert_eq!(finding.health, Health::Limited);
            assert!(!finding.advice.is_empty());
        }
        for finding in [of_user(true, None), of_cgroup(None), of_descriptors(4096)] {
            assert_eq!(finding.health, Health::Good);
        }
    }
}
