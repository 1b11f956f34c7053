"""Keys, sealing, blind index, pseudonyms, tokens: nothing outside knows which algorithm is used."""
