//! The real binary, a real Redis, a real SQLite file. `fleet` starts them; each other file is about one concern.
mod fleet;

mod accounts;
mod admin_cli;
mod command_line;
mod cost;
mod durability;
mod hashing;
mod hostile_clients;
mod http_contract;
mod logs;
mod memory;
mod redis_failures;
mod sessions;
mod shutdown;
mod sqlite_failures;
