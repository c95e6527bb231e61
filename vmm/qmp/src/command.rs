//! All commands, as typed values.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::address::{MigrationAddress, MigrationChannel};
use crate::message::QmpError;
use crate::migration::{MigrationCapabilityStatus, MigrationParameters};
use crate::schema;

/// A command with its arguments; serializes to a request without `id`.
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
    /// Resumes the guest.
    Cont,
    /// Ends the VMM.
    Quit,
    /// Resets the machine.
    #[serde(rename = "system_reset")]
    SystemReset,
    /// Presses the power button.
    #[serde(rename = "system_powerdown")]
    SystemPowerdown,
    /// Sends an NMI to every vCPU.
    InjectNmi,
    /// Writes guest-physical memory to a file.
    Pmemsave(PmemsaveArgs),
    /// Starts a migration, or an update in place.
    Migrate(MigrateArgs),
    /// Cancels a migration.
    #[serde(rename = "migrate_cancel")]
    MigrateCancel,
    /// Loads a saved state; only after `--incoming defer`.
    MigrateIncoming(MigrateIncomingArgs),
    /// The status of the migration.
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
    /// Injects something into the guest, running or stopped.
    #[cfg(feature = "failpoints")]
    XInject(InjectArgs),
    /// KVM's whole view of a stopped guest.
    #[cfg(feature = "failpoints")]
    XAudit,
}

impl Command {
    /// Returns the command called `name`, after checking its arguments against the schema.
    pub fn from_parts(name: &str, arguments: Map<String, Value>) -> Result<Self, QmpError> {
        let spec = schema::command(name).ok_or_else(|| QmpError::command_not_found(name))?;
        let arguments = Value::Object(arguments);
        spec.arguments.check(&arguments, "")?;
        let typed = if spec.arguments.members.is_empty() {
            json!({ "execute": name })
        } else {
            json!({ "execute": name, "arguments": arguments })
        };
        // It passed the schema check, so this fails only if schema and type have drifted apart.
        serde_json::from_value(typed).map_err(|error| QmpError::generic(error.to_string()))
    }
}

/// Protocol capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QmpCapability {
    /// Out-of-band commands.
    Oob,
}

/// The arguments of `qmp_capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpCapabilitiesArgs {
    /// The capabilities to turn on; the server must offer each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<Vec<QmpCapability>>,
}

/// The arguments of `pmemsave`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemsaveArgs {
    /// The guest-physical address.
    pub val: u64,
    /// The number of bytes.
    pub size: u64,
    /// The file to write.
    pub filename: String,
}

/// The arguments of `migrate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateArgs {
    /// The destination as a URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The destination as channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<MigrationChannel>>,
    /// Resumes a paused postcopy migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<bool>,
}

impl MigrateArgs {
    /// Returns the destination of the main channel.
    pub fn address(&self) -> Result<MigrationAddress, QmpError> {
        MigrationAddress::from_arguments(self.uri.as_deref(), self.channels.as_deref())
    }
}

/// The arguments of `migrate-incoming`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateIncomingArgs {
    /// The source as a URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The source as channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<MigrationChannel>>,
    /// Whether a failure ends the VMM; true if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_on_error: Option<bool>,
}

impl MigrateIncomingArgs {
    /// Returns the source of the main channel.
    pub fn address(&self) -> Result<MigrationAddress, QmpError> {
        MigrationAddress::from_arguments(self.uri.as_deref(), self.channels.as_deref())
    }
}

/// The arguments of `x-set-failpoint`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFailpointArgs {
    /// The fail point.
    pub point: String,
    /// The action to take there, once; `off` disarms it.
    pub action: String,
}

/// The arguments of `x-inject`.
#[cfg(feature = "failpoints")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectArgs {
    /// `irqfd`, or `start` for INIT and SIPI.
    pub what: String,
    /// The vCPU to start.
    pub cpu: u64,
    /// The page below 1 MiB to start in.
    pub page: u64,
}

/// The arguments of `migrate-set-capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateSetCapabilitiesArgs {
    /// The capabilities, with their new states.
    pub capabilities: Vec<MigrationCapabilityStatus>,
}

#[cfg(test)]
mod tests;
