//! The real binary, a real Redis, a real SQLite file. `fleet` starts them; each other file is about one concern.
mod fleet;

mod accounts;
mod admin_cli;
mod audit;
mod command_line;
mod cost;
mod cross_site;
mod durability;
mod edge;
mod file_owners;
mod hashing;
mod hostile_clients;
mod http_contract;
mod known_races;
mod logs;
mod memory;
mod metrics;
mod passwords_api;
mod redis_failures;
mod sessions;
mod sessions_api;
mod shutdown;
mod sqlite_failures;
mod stress;
mod throttle;
mod traces;
