-- The groups that a user is in, in alphabetical order, separated by commas: admins,staff (src/store/users/groups.rs).
-- Expands only: binaries that don't know the column go on, and leave it empty for the accounts that they make.
ALTER TABLE users ADD COLUMN group_names TEXT NOT NULL DEFAULT '';
