-- How far a file of usage data has come is the number of a line: the same data may come again behind a header and a signature
-- that end otherwise (CR LF, blanks), where every byte is another. Rows of half-taken files have the right number already.
ALTER TABLE usage_file DROP COLUMN at_byte;
