-- Times are milliseconds since the epoch. JSON stands in TEXT.
CREATE TABLE images (
    project TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    kind TEXT NOT NULL,
    architecture TEXT NOT NULL,
    filename TEXT NOT NULL,
    public BOOLEAN NOT NULL,
    auto_update BOOLEAN NOT NULL,
    cached BOOLEAN NOT NULL,
    properties TEXT NOT NULL,
    profiles TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    uploaded_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    PRIMARY KEY (project, fingerprint)
);
-- An image's files in the order in which they were hashed.
CREATE TABLE image_blobs (
    project TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    position BIGINT NOT NULL,
    part TEXT NOT NULL,
    digest TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    media_type TEXT NOT NULL,
    PRIMARY KEY (project, fingerprint, position),
    FOREIGN KEY (project, fingerprint) REFERENCES images (project, fingerprint) ON DELETE CASCADE
);
CREATE TABLE image_aliases (
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (project, name),
    FOREIGN KEY (project, fingerprint) REFERENCES images (project, fingerprint) ON DELETE CASCADE
);
CREATE INDEX image_aliases_by_target ON image_aliases (project, fingerprint);
-- Deliberately without cascade: an image that is held cannot go.
CREATE TABLE image_holds (
    project TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    holder TEXT NOT NULL,
    authority TEXT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (project, fingerprint, holder),
    FOREIGN KEY (project, fingerprint) REFERENCES images (project, fingerprint)
);
-- Blobs of deleted images whose files may still be there after a crash.
CREATE TABLE blob_removals (
    digest TEXT PRIMARY KEY
);
