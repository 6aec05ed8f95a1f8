-- One spelling of each name: NFKC, full case folding, domains by UTS 46 (src/store/users/names.rs). Two accounts never
-- have the same. `authfleet migrate` fills the columns in for accounts that were made before.
-- NULL where that wasn't done yet, where another account has the name (both stay: this one is found by email_key or
-- username_key alone, as it always was), and where a name holds characters that are refused today.
-- Expands only: binaries that don't know the columns go on, and leave them NULL. email_key and username_key can go in a
-- release whose `authfleet doctor` finds no account that depends on them.
ALTER TABLE users ADD COLUMN email_canonical TEXT CHECK (email_canonical <> '');
ALTER TABLE users ADD COLUMN username_canonical TEXT
    CHECK (username_canonical <> '' AND instr(username_canonical, '@') = 0);
CREATE UNIQUE INDEX users_email_canonical ON users (email_canonical);
CREATE UNIQUE INDEX users_username_canonical ON users (username_canonical);
