//! Every command, typed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::address::{MigrationAddress, MigrationChannel};
use crate::message::QmpError;
use crate::migration::{MigrationCapabilityStatus, MigrationParameters};
use crate::schema;

/// A command with its arguments; serialises as a request without `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub enum Command {
    /// Ends capability negotiation.
    #[serde(rename = "qmp_capabilities")]
    QmpCapabilities(QmpCapabilitiesArgs),
    /// The server's version.
    QueryVersion,
    /// The names of all commands.
    QueryCommands,
    /// All commands, events and their types.
    QueryQmpSchema,
    /// The VM's name.
    QueryName,
    /// The run state.
    QueryStatus,
    /// The vCPUs.
    QueryCpusFast,
    /// The size of RAM.
    QueryMemorySizeSummary,
    /// Stops the guest.
    Stop,
    /// Lets it go on.
    Cont,
    /// Ends the VMM.
    Quit,
    /// Resets the machine.
    #[serde(rename = "system_reset")]
    SystemReset,
    /// Sends an NMI to every vCPU.
    InjectNmi,
    /// Writes guest-physical memory to a file.
    Pmemsave(PmemsaveArgs),
    /// Begins a migration, or an update in place.
    Migrate(MigrateArgs),
    /// Calls it off.
    #[serde(rename = "migrate_cancel")]
    MigrateCancel,
    /// Loads a saved state; only after `--incoming defer`.
    MigrateIncoming(MigrateIncomingArgs),
    /// Where the migration stands.
    QueryMigrate,
    /// Changes parameters.
    MigrateSetParameters(MigrationParameters),
    /// All parameters.
    QueryMigrateParameters,
    /// Turns capabilities on and off.
    MigrateSetCapabilities(MigrateSetCapabilitiesArgs),
    /// All capabilities.
    QueryMigrateCapabilities,
    /// All fail points.
    #[cfg(feature = "failpoints")]
    QueryFailpoints,
    /// Arms or disarms a fail point.
    #[cfg(feature = "failpoints")]
    XSetFailpoint(SetFailpointArgs),
    /// Sends something to the guest, whether it runs or stands still.
    #[cfg(feature = "failpoints")]
    XInject(InjectArgs),
    /// Everything that KVM tells of a guest that stands still.
    #[cfg(feature = "failpoints")]
    XAudit,
}

impl Command {
    /// The command called `name`, its arguments checked against the schema.
    pub fn from_parts(name: &str, arguments: Map<String, Value>) -> Result<Self, QmpError> {
        let spec = schema::command(name).ok_or_else(|| QmpError::command_not_found(name))?;
        let arguments = Value::Object(arguments);
        spec.arguments.check(&arguments, "")?;
        let typed = if spec.arguments.members.is_empty() {
            json!({ "execute": name })
        } else {
            json!({ "execute": name, "arguments": arguments })
        };
        // The schema has let it pass, so this fails only if schema and type have drifted apart.
        serde_json::from_value(typed).map_err(|error| QmpError::generic(error.to_string()))
    }
}

/// Protocol capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QmpCapability {
    /// Commands out of band.
    Oob,
}

/// The arguments of `qmp_capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpCapabilitiesArgs {
    /// The capabilities to turn on; each must be on offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<Vec<QmpCapability>>,
}

/// The arguments of `pmemsave`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemsaveArgs {
    /// The guest-physical address.
    pub val: u64,
    /// How many bytes.
    pub size: u64,
    /// The file to write.
    pub filename: String,
}

/// The arguments of `migrate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateArgs {
    /// Where to, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Where to, as channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<MigrationChannel>>,
    /// Resumes a paused postcopy migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<bool>,
}

impl MigrateArgs {
    /// Where the main channel leads.
    pub fn address(&self) -> Result<MigrationAddress, QmpError> {
        MigrationAddress::from_arguments(self.uri.as_deref(), self.channels.as_deref())
    }
}

/// The arguments of `migrate-incoming`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateIncomingArgs {
    /// Where from, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Where from, as channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<MigrationChannel>>,
    /// Whether a failure ends the VMM; true if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_on_error: Option<bool>,
}

impl MigrateIncomingArgs {
    /// Where the main channel comes from.
    pub fn address(&self) -> Result<MigrationAddress, QmpError> {
        MigrationAddress::from_arguments(self.uri.as_deref(), self.channels.as_deref())
    }
}

/// The arguments of `x-set-failpoint`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFailpointArgs {
    /// Where.
    pub point: String,
    /// What happens there, once; `off` disarms it.
    pub action: String,
}

/// The arguments of `x-inject`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectArgs {
    /// `irqfd`, or `start` for INIT and SIPI.
    pub what: String,
    /// Which vCPU starts.
    pub cpu: u64,
    /// In which page below 1 MiB.
    pub page: u64,
}

/// The arguments of `migrate-set-capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateSetCapabilitiesArgs {
    /// Each with its new state.
    pub capabilities: Vec<MigrationCapabilityStatus>,
}

#[cfg(test)]
mod tests;
