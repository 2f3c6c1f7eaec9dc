-- How people read a store. They hold nothing, so they are made anew by every upgrade.

DROP VIEW IF EXISTS entries;
DROP VIEW IF EXISTS reservation_list;

-- The movements, readable. `admit_ms` is when the windows that it counts in became the account's
-- current ones; it lies before `time_ms` when a hold settles late.
CREATE VIEW entries AS
  SELECT e.id >> 16 AS seq, e.id & 65535 AS row, e.time_ms, a.path AS account, e.reservation,
         u.name AS unit, k.name AS kind, e.amount, e.chain,
         coalesce(c.time_ms, e.time_ms) AS admit_ms, r.model, d.text AS detail
  FROM entry e
  JOIN kinds k ON k.id = e.kind
  LEFT JOIN accounts a ON a.id = e.account
  LEFT JOIN units u ON u.id = e.unit
  LEFT JOIN chains c ON c.id = e.chain
  LEFT JOIN reservations r ON r.sequence = e.reservation
  LEFT JOIN details d ON d.entry = e.id;

CREATE VIEW reservation_list AS
  SELECT r.sequence, a.path AS account, r.state, r.holds, r.model, hex(r.key) AS key,
         hex(r.payload) AS payload, r.parent, r.created_ms, r.ended_ms
  FROM reservations r LEFT JOIN accounts a ON a.id = r.account;
