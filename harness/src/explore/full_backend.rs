//! A backend for tests that claims to support everything, on any host; it cannot be started.

use std::path::Path;

use crate::backend::{Backend, Channels, Dialect, Feature, Launch, cpr_vmm};
use crate::scenario::CommandKind;

pub(super) struct FullBackend;

impl Backend for FullBackend {
    fn name(&self) -> &'static str {
        "able"
    }

    fn binary(&self) -> &Path {
        Path::new("/no/such/vmm")
    }

    fn arguments(&self, _launch: Launch<'_>) -> Vec<String> {
        Vec::new()
    }

    fn update_arguments(&self, _launch: Launch<'_>, _state: &str) -> Vec<String> {
        Vec::new()
    }

    fn transfer_arguments(&self, _launch: Launch<'_>, _channels: &Channels) -> Vec<String> {
        Vec::new()
    }

    fn change_arguments(&self, _kind: CommandKind, _arguments: &mut Vec<String>) {}

    fn dialect(&self) -> Dialect {
        cpr_vmm::DIALECT
    }

    fn lacks(&self, _feature: Feature) -> Option<String> {
        None
    }

    fn uses_kvm(&self) -> bool {
        false
    }
}
