-- Migrations expand first and contract later: a replica of the previous release keeps working on the new schema.
-- One that takes something away sets authfleet_oldest to the oldest migration that a binary must know to start.
-- All that one `authfleet migrate` applies is one transaction.
-- Times are milliseconds since the Unix epoch: SELECT to_timestamp(created_at / 1000.0) FROM users;
-- Names are compared byte by byte (COLLATE "C"): the server has normalised them, and an index doesn't depend on the
-- version of the system's locales.
CREATE TABLE users (
    -- UUIDv7; its timestamp is created_at
    id                 uuid   NOT NULL PRIMARY KEY,
    email              text   NOT NULL CHECK (strpos(email, '@') > 1),
    -- NFKC and lower case, computed by the server
    email_key          text   COLLATE "C" NOT NULL CHECK (email_key <> ''),
    -- One spelling of each name: NFKC, full case folding, domains by UTS 46 (src/store/users/names.rs). NULL where two
    -- accounts that came from SQLite are one by this rule, and where today's rule refuses the name.
    email_canonical    text   COLLATE "C" CHECK (email_canonical <> ''),
    username           text   NOT NULL CHECK (username <> '' AND strpos(username, '@') = 0),
    username_key       text   COLLATE "C" NOT NULL CHECK (username_key <> '' AND strpos(username_key, '@') = 0),
    username_canonical text   COLLATE "C" CHECK (username_canonical <> '' AND strpos(username_canonical, '@') = 0),
    password_hash      text   NOT NULL CHECK (password_hash <> ''),
    epoch              bigint NOT NULL DEFAULT 1 CHECK (epoch >= 1),
    disabled_at        bigint,
    created_at         bigint NOT NULL,
    updated_at         bigint NOT NULL,
    CONSTRAINT users_email_key UNIQUE (email_key),
    CONSTRAINT users_email_canonical UNIQUE (email_canonical),
    CONSTRAINT users_username_key UNIQUE (username_key),
    CONSTRAINT users_username_canonical UNIQUE (username_canonical)
);

-- One row: the oldest migration that a binary must know.
CREATE TABLE authfleet_oldest (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    migration bigint  NOT NULL
);
INSERT INTO authfleet_oldest (migration) VALUES (1);
