"""Which countries and cities the table of real facts has, and what they are called.

What is left out, and why, stands here beside the data it concerns.
"""

from __future__ import annotations

LEAST_COUNTRY, LEAST_CITY, LEAST_US_CITY = 100_000, 150_000, 100_000
CITIES_OF_A_COUNTRY = 30
NAMES_OF_A_CITY = 12
"""Spellings that GeoNames lists of a city, at least: districts with a doubtful count have few."""
DOMINANCE = 20
"""How much larger a city must be than any other of its name elsewhere, to be meant by the name."""

# Dissolved states; territories whose state or sovereignty is contested; dependent territories.
NO_COUNTRY = {"AN", "CS", "EH", "HK", "MO", "PS", "TW", "XK"}
NO_COUNTRY |= {"AW", "CW", "GF", "GP", "GU", "MQ", "NC", "PF", "PR", "RE", "VI", "YT"}
# Named alike, or renamed so recently that texts mostly have the old name.
CONFUSED = {"CD", "CG", "GN", "GQ", "GW", "MK", "SZ", "TL"}
# Contested, divided between several cities, or moved in recent years.
NO_CAPITAL = {"BI", "BJ", "BO", "CI", "ID", "IL", "KZ", "LK", "MM", "MY", "TZ", "YE", "ZA"}
# In two continents, or counted to different ones.
NO_CONTINENT = {"AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "PA", "PG", "RU", "TR", "TT"}
# The sources disagree, or the currency changed in the last years.
NO_CURRENCY = {"BG", "CU", "HR", "VE", "ZW"}
# Regions under another state's control or claim: country and first-level region.
NO_REGION = {
    ("UA", "05"), ("UA", "08"), ("UA", "11"), ("UA", "14"), ("UA", "20"), ("UA", "26"),
    ("IN", "12"), ("IN", "41"), ("PK", "06"), ("PK", "07"),
}  # fmt: skip
NO_CITY = {"Jerusalem", "Hargeysa", "Hargeisa", "Tiraspol", "Sokhumi", "Stepanakert"}
NO_CITY |= {"Male", "Sevastopol", "Simferopol", "Laayoune", "Srinagar", "Tskhinvali"}

# Names as English texts have them, where GeoNames has others.
COUNTRY_NAMES = {"CV": "Cape Verde", "CZ": "Czech Republic", "NL": "Netherlands"}
WITH_ARTICLE = {"AE", "BS", "CF", "DO", "GB", "GM", "KM", "MV", "NL", "PH", "SB", "US"}
CAPITAL_NAMES = {"US": "Washington, D.C."}
CITY_NAMES = {
    "Antwerpen": "Antwerp", "Gent": "Ghent", "Jeju City": "Jeju", "Köln": "Cologne",
    "Málaga": "Malaga", "New York City": "New York", "Nürnberg": "Nuremberg",
    "Sevilla": "Seville",
}  # fmt: skip
# Three letters are mostly a word or a syllable, too, as is Male.
LEAST_LETTERS = 4
CURRENCY_NAMES = {"Belarusian ruble": "ruble", "Riels": "riel", "Yuan Renminbi": "yuan"}
LANGUAGE_NAMES = {"Bangla": "Bengali"}
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania",
    "SA": "South America",
}  # fmt: skip
# Spoken by at least this share of the people, a language may be given as an answer, too.
SPOKEN_PERCENT = 10.0
