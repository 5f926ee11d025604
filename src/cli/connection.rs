//! Which server a backup connects to: libpq's variables.

use super::environment::Environment;
use super::exit::Failure;
use crate::commands::CommandError;
use crate::pg::connection_settings::ConnectionSettings;

pub(super) fn settings(environment: &Environment) -> Result<ConnectionSettings, Failure> {
    ConnectionSettings::from_environment(|name| environment.text(name))
        .map_err(|failed| Failure::Command(CommandError::from(failed)))
}
