"""Pairs of action texts for judging a measure of similar texts.

Both lists were written before anything was measured on them. The texts are of the kinds that
assembly, kitchen and repair datasets hold.
"""

# Other actions, however alike they are written: each is a negative of the other.
DIFFERENT = (
    ("screw chassis with screwdriver", "unscrew chassis with screwdriver"),
    ("attach wheel to chassis", "detach wheel from chassis"),
    ("screw first wheel with screwdriver", "screw second wheel with screwdriver"),
    ("attach bucket to arm", "attach bucket to chassis"),
    ("open cupboard", "close cupboard"),
    ("put plate in drawer", "take plate out of drawer"),
    ("press left button", "press right button"),
    ("pour water into kettle", "drain water from kettle"),
    ("turn on tap", "turn off tap"),
    ("tighten bolt with wrench", "loosen bolt with wrench"),
    ("attach front bumper", "attach rear bumper"),
    ("pick up spoon", "put down spoon"),
    ("insert battery", "remove battery"),
    ("fold towel", "unfold towel"),
    ("plug in toaster", "unplug toaster"),
    ("lift lid", "lower lid"),
    ("wash fork", "wash knife"),
    ("peel onion", "cut onion"),
    ("fill bowl with water", "empty bowl of water"),
    ("lock door", "unlock door"),
    ("put cup on plate", "put plate on cup"),
    ("wrap tortilla", "unwrap tortilla"),
    ("assemble the cabin", "disassemble the cabin"),
    ("turn up heat", "turn down heat"),
    ("add salt to water", "add sugar to water"),
)

# The same action in other words: neither is a negative of the other.
PARAPHRASES = (
    ("attach wheels", "put the wheels on"),
    ("screw chassis with screwdriver", "tighten the chassis screws using a screwdriver"),
    ("turn on tap", "open the faucet"),
    ("pick up spoon", "grab the spoon"),
    ("wash plate", "clean the plate"),
    ("cut onion", "chop the onion"),
    ("throw away packaging", "put packaging in the bin"),
    ("take off lid", "remove the lid"),
    ("detach cabin from chassis", "take the cabin off the chassis"),
    ("put plate in drawer", "place the plate into the drawer"),
    ("switch off light", "turn the light off"),
    ("stir soup", "mix the soup with a spoon"),
    ("pour water into kettle", "fill the kettle with water"),
    ("open fridge", "open the refrigerator door"),
    ("dry hands", "wipe hands with towel"),
    ("fasten bolt", "tighten the bolt"),
    ("insert battery", "put the battery in"),
    ("close cupboard", "shut the cupboard door"),
    ("flip pancake", "turn the pancake over"),
    ("screw second wheel with screwdriver", "fasten wheel number two with a screwdriver"),
    ("unplug toaster", "pull the plug of the toaster out of the socket"),
    ("attach bucket to arm", "connect the bucket with the arm"),
    ("press start button", "push the start button"),
    ("attach rear bumper", "mount the bumper at the back"),
    ("put on gloves", "wear gloves"),
)
