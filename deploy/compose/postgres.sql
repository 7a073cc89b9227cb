-- The user of docs/getting-started.md, and two tables to begin with.
CREATE ROLE caudal LOGIN REPLICATION PASSWORD 'caudal-secret';
GRANT CONNECT ON DATABASE shop TO caudal;
GRANT USAGE ON SCHEMA public TO caudal;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO caudal;

CREATE TABLE customers (
  id integer PRIMARY KEY,
  name varchar(80) NOT NULL,
  email varchar(120) NOT NULL
);
CREATE TABLE orders (
  id bigint PRIMARY KEY,
  customer_id integer NOT NULL REFERENCES customers (id),
  total decimal(12,2) NOT NULL,
  placed_on date NOT NULL
);
INSERT INTO customers VALUES (1, 'Ada', 'ada@example.com'), (2, 'Grace', 'grace@example.com');
INSERT INTO orders VALUES (1, 1, 12.50, '2026-11-01'), (2, 2, 99.99, '2026-11-02');

-- The agent reads this publication; only the tables' owner may create one.
CREATE PUBLICATION caudal_shop FOR TABLE customers, orders;
