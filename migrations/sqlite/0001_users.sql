-- Migrations expand first and contract later: a replica of the previous release keeps working on the new schema.
-- One that takes something away sets user_version to the oldest migration that a binary must know to start.
-- Times are milliseconds since the Unix epoch: SELECT datetime(created_at / 1000, 'unixepoch') FROM users;
CREATE TABLE users (
    -- UUIDv7, hyphenated, lower case; its timestamp is created_at
    id            TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 36 AND id = lower(id)),
    email         TEXT    NOT NULL CHECK (instr(email, '@') > 1),
    -- NFKC and lower case, computed by the server: SQLite's own lower() knows ASCII alone
    email_key     TEXT    NOT NULL CHECK (email_key <> ''),
    username      TEXT    NOT NULL CHECK (username <> '' AND instr(username, '@') = 0),
    username_key  TEXT    NOT NULL CHECK (username_key <> '' AND instr(username_key, '@') = 0),
    password_hash TEXT    NOT NULL CHECK (password_hash <> ''),
    epoch         INTEGER NOT NULL DEFAULT 1 CHECK (epoch >= 1),
    disabled_at   INTEGER,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    CONSTRAINT users_email_key UNIQUE (email_key),
    CONSTRAINT users_username_key UNIQUE (username_key)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 1;
