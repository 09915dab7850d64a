"""The nameable things of the toy world: emoji short name -> the noun a caption uses.

Chosen by hand to look different from one another at 64 pixels: no flags, faces, symbols or near-doubles.
Synonyms and related words are not listed here; they are the CLDR keywords of the same emoji.
"""

_ANIMALS = """
rat:rat cow2:cow tiger2:tiger rabbit2:rabbit cat2:cat racehorse:horse sheep:sheep
monkey:monkey dog2:dog pig2:pig elephant:elephant koala:koala camel:camel bear:bear panda_face:panda
bat:bat fox_face:fox deer:deer gorilla:gorilla rhinoceros:rhinoceros giraffe_face:giraffe zebra_face:zebra
kangaroo:kangaroo raccoon:raccoon chipmunk:squirrel
dragon:dragon crocodile:crocodile snake:snake turtle:turtle t-rex:dinosaur whale2:whale
octopus:octopus shell:seashell tropical_fish:fish dolphin:dolphin crab:crab shark:shark
lobster:lobster snail:snail ant:ant bee:bee ladybug:ladybug spider:spider
butterfly:butterfly rooster:rooster hatched_chick:chick penguin:penguin eagle:eagle duck:duck
owl:owl peacock:peacock parrot:parrot swan:swan flamingo:flamingo frog:frog
"""

_PLANTS_AND_FOOD = """
evergreen_tree:pine deciduous_tree:tree palm_tree:palm cactus:cactus four_leaf_clover:clover
maple_leaf:leaf mushroom:mushroom tulip:tulip cherry_blossom:blossom rose:rose sunflower:sunflower
tomato:tomato grapes:grapes watermelon:watermelon lemon:lemon banana:banana pineapple:pineapple apple:apple
pear:pear peach:peach cherries:cherries strawberry:strawberry kiwifruit:kiwi coconut:coconut
blueberries:blueberries eggplant:eggplant avocado:avocado carrot:carrot corn:corn broccoli:broccoli
hot_pepper:pepper hotdog:hotdog hamburger:hamburger pizza:pizza bread:bread fries:fries
popcorn:popcorn croissant:croissant cheese_wedge:cheese
sushi:sushi icecream:icecream doughnut:doughnut cookie:cookie chocolate_bar:chocolate lollipop:lollipop
cupcake:cupcake birthday:cake honey_pot:honey wine_glass:wine beer:beer coffee:coffee teapot:teapot
"""

_OBJECTS = """
gift:gift balloon:balloon jack_o_lantern:pumpkin crown:crown tophat:hat eyeglasses:glasses
shirt:shirt jeans:jeans dress:dress handbag:handbag athletic_shoe:sneaker boot:boot
gem:diamond trophy:trophy headphones:headphones microphone:microphone radio:radio bulb:lightbulb
camera:camera tv:television candle:candle basketball:basketball football:football soccer:soccer
kite:kite teddy_bear:teddy game_die:dice dart:target art:palette
saxophone:saxophone guitar:guitar drum_with_drumsticks:drum
computer:laptop telephone_receiver:telephone book:book scissors:scissors pencil2:pencil key:key lock:lock
hammer:hammer axe:axe magnet:magnet crossed_swords:swords shield:shield bell:bell
package:package moneybag:money microscope:microscope
syringe:syringe toilet:toilet bed:bed chair:chair door:door bucket:bucket
toothbrush:toothbrush umbrella_with_rain_drops:umbrella alarm_clock:clock hourglass:hourglass
moyai:statue
"""

_VEHICLES_AND_PLACES = """
steam_locomotive:train bus:bus fire_engine:firetruck taxi:taxi
blue_car:car truck:truck tractor:tractor bike:bicycle
rocket:rocket helicopter:helicopter airplane:airplane flying_saucer:ufo parachute:parachute
boat:sailboat ship:ship anchor:anchor house:house
european_castle:castle tent:tent volcano:volcano
desert_island:island earth_americas:earth full_moon:moon sunny:sun star:star rainbow:rainbow cloud:cloud
zap:lightning snowflake:snowflake snowman:snowman fire:fire droplet:droplet ringed_planet:planet heart:heart
"""


def _parse(*tables: str) -> dict[str, str]:
    pairs = (entry.partition(":")[::2] for table in tables for entry in table.split())
    return dict(pairs)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


THINGS: dict[str, str] = _parse(_ANIMALS, _PLANTS_AND_FOOD, _OBJECTS, _VEHICLES_AND_PLACES)
"""Emoji short name -> noun. Every noun stands once."""

PLURAL: frozenset[str] = _words("grapes cherries blueberries fries glasses jeans headphones scissors swords")
UNCOUNTED: frozenset[str] = _words(
    "corn broccoli bread popcorn cheese sushi chocolate honey wine beer coffee money fire earth "
    "dice soccer lightning"
)
