-- The user of docs/getting-started.md, and two tables to begin with.
CREATE USER 'caudal'@'%' IDENTIFIED BY 'caudal-secret';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'caudal'@'%';
GRANT SELECT, LOCK TABLES ON shop.* TO 'caudal'@'%';
USE shop;

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
